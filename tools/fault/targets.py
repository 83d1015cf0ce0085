"""All files that are damaged."""

import gzip
import json
import random
import shutil

from .compared import newest, tree
from .files import idx, read_safetensors, torch_bin
from .runs import CPU, KINDS
from .target import ORDERLY, REFUSES, SAME, Target, WEIGHTS


def targets(lab):
    run = {kind: lab.reference(kind)[0] for kind in KINDS}
    last = {kind: f"run/checkpoints/{newest(run[kind]).name}" for kind in KINDS}
    steps = {kind: KINDS[kind][2] + 2 for kind in KINDS}
    resume = lambda kind: ["train", "--resume", "run", *CPU, "--steps", steps[kind]]
    after = lambda kind: f"run/checkpoints/step-{steps[kind]:08}.safetensors"
    few = ["--count", 1, "--steps", 2, "--sampler", "ddim", *CPU, "--out", "out.png"]
    made = lab.make_folder("made")
    rng = random.Random(2)

    # Own files.
    sample, export = ["sample", "run", *few], ["export", "run", "out"]
    encode, decode = ["encode", "run", "digits", "--count", 1, *CPU], ["decode", "run", "latents", *CPU]
    for kind in ("ddpm", "classes", "imported"):
        invert = ["invert", "run", "digits", "--count", 1, "--steps", 2, *CPU]
        invert += ["--class", 1] if kind == "classes" else []
        commands = [resume(kind), sample, ["sample", last[kind], *few], export, invert]
        yield Target(f"checkpoint of {kind}", {"run": run[kind]}, last[kind], REFUSES, *commands)
    for kind in ("conv-vae", "mlp-vae"):
        lab.must(["encode", run[kind], "digits", "--count", 3, *CPU, "--out", made / f"{kind}-latents"], made)
        folders = {"run": run[kind], "latents": made / f"{kind}-latents"}
        commands = [resume(kind), encode, decode, ["figure", "mean", "run", "--count", 2, *CPU]]
        yield Target(f"checkpoint of {kind}", folders, last[kind], REFUSES, *commands)
        yield Target(f"latents of {kind}", folders, "latents", ORDERLY, decode)
    of = {"run": run["autoencoder"]}
    yield Target("checkpoint of autoencoder", of, last["autoencoder"], REFUSES, resume("autoencoder"), encode)
    of = {"run": run["kl-vae"]}
    train = lab.begin_command("ldm", "new", steps=2, vae="run")
    yield Target("VAE for a new ldm", of, last["kl-vae"], REFUSES, train)
    of, resumed = {"run": run["ldm"]}, resume("ldm")
    yield Target("checkpoint of ldm", of, last["ldm"], REFUSES, resumed, sample, export)
    yield Target("VAE of ldm", of, "run/vae.safetensors", REFUSES, resumed, sample, encode, export)
    yield Target("cached latents", of, "run/latents.safetensors", SAME, resumed, result=after("ldm"))
    yield Target("recipe.toml of ldm", of, "run/recipe.toml", ORDERLY, [*resumed, "--dry-run"], resumed)
    of, resumed, figure = {"run": run["ddpm"]}, resume("ddpm"), ["figure", "loss", "run"]
    plan = [*resumed, "--dry-run"]
    yield Target("recipe.toml of ddpm", of, "run/recipe.toml", ORDERLY, plan, resumed, sample)
    yield Target("metrics.jsonl", of, "run/metrics.jsonl", SAME, resumed, result=after("ddpm"))
    yield Target("metrics.jsonl in a figure", of, "run/metrics.jsonl", ORDERLY, figure)
    noise = ["--count", 2, "--steps", 2, *CPU, "--out", "noise"]
    lab.must(["invert", run["ddpm"], "digits", *noise], made)
    of = of | {"noise": made / "noise"}
    yield Target("noise", of, "noise", ORDERLY, ["sample", "run", "--noise", "noise", *CPU])
    of, resumed = {"run": run["conv-vae"]}, resume("conv-vae")
    yield Target("evaluations.jsonl", of, "run/evaluations.jsonl", SAME, resumed, result=after("conv-vae"))
    if "gpu:0" in lab.run(["devices"], lab.folder).out:
        (made / "tiny.toml").write_text(TINY)
        lab.must(["tune", "tiny.toml", "--tuning", "tuning", "--device", "gpu:0"], made)
        lab.must(["train", "tiny.toml", "--out", "tiny", *CPU], made)
        of, read = {"run": made / "tiny", "tuning": made / "tuning"}, ["--no-tune", "--tuning", "tuning"]
        command = ["encode", "run", "digits", "--count", 1, "--device", "gpu:0", *read]
        yield Target("tuning cache", of, "tuning", ORDERLY, command)
    else:
        print("  skipped: the tuning cache, for which a GPU or Mesa's software driver is needed")

    # Exported folders, which are input as well.
    folders = {kind: lab.exported(kind) for kind in ("ddpm", "ldm", "kl-vae")}
    weights = folders["ddpm"] / "unet" / WEIGHTS
    tensors, shard = read_safetensors(weights), "diffusion_pytorch_model-00001-of-00001.safetensors"
    for kind in ("binary", "shards"):
        folders[kind] = made / kind
        leave = lambda _, names: [n for n in names if n == weights.name]
        shutil.copytree(folders["ddpm"], folders[kind], ignore=leave)
    (folders["binary"] / "unet/diffusion_pytorch_model.bin").write_bytes(torch_bin(tensors))
    shutil.copy2(weights, folders["shards"] / "unet" / shard)
    index = folders["shards"] / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}))
    read = [["import", "folder", "new", "--data", "digits"], ["sample", "folder", *few]]
    for kind, folder in folders.items():
        for file in sorted(tree(folder)):
            if kind in KINDS or file.endswith((".bin", ".index.json")):
                commands = read[:1] if kind == "kl-vae" else read
                name = f"exported {kind}: {file}"
                yield Target(name, {"folder": folder}, f"folder/{file}", ORDERLY, *commands)

    # Input files.
    (made / "recipe.toml").write_text(lab.must(["recipes", "digits"], made).out)
    plan = ["train", "my.toml", "--dry-run", *CPU]
    yield Target("recipe", {"my.toml": made / "recipe.toml"}, "my.toml", ORDERLY, plan)
    of = {"pictures": lab.pictures(), "run": run["conv-vae"]}
    sheet = ["--out", "sheet.png"]
    for file in ("pictures/a/00.png", "pictures/a/03.jpeg"):
        commands = [["data", "images:pictures", *sheet, "--image-size", 16], ["encode", "run", file, *CPU]]
        yield Target(file.split(".")[1], of, file, ORDERLY, *commands)
    mnist, packed = made / "mnist", made / "mnist-gz"
    for folder in (mnist, packed):
        folder.mkdir()
        for name, is_images in (("train-images-idx3-ubyte", True), ("train-labels-idx1-ubyte", False)):
            if folder == mnist:
                (folder / name).write_bytes(idx(rng, is_images))
            else:
                (folder / f"{name}.gz").write_bytes(gzip.compress((mnist / name).read_bytes(), mtime=0))
        for file in sorted(tree(folder)):
            command = ["data", "mnist:mnist", "--count", 8, *sheet]
            yield Target(f"IDX {file}", {"mnist": folder}, f"mnist/{file}", ORDERLY, command)
    cifar = lab.make_folder("made", "cifar")
    for i in range(1, 6):
        records = (bytes([label]) + rng.randbytes(3072) for label in range(4))
        (cifar / f"data_batch_{i}.bin").write_bytes(b"".join(records))
    file = "cifar/data_batch_2.bin"
    yield Target("CIFAR-10", {"cifar": cifar}, file, ORDERLY, ["data", "cifar10:cifar", *sheet])


# So small that its kernels are tuned in seconds.
TINY = """name = "tiny"
system = "vae"
data = "digits"
image_size = 8
steps = 2
batch_size = 2
[vae]
kind = "mlp"
widths = [8]
latent = 2
"""
