"""Section: special files in the place of regular ones."""

import os
import random
import resource
import shlex

from .compared import newest
from .files import idx
from .runs import CPU, DIFFUSION, GB, KINDS, SMALL
from .target import ORDERLY, REFUSES, Target, WEIGHTS, shown_command


def special(lab):
    run = lab.reference("ddpm")[0]
    last = f"run/checkpoints/{newest(run).name}"
    ldm, vae = lab.reference("ldm")[0], lab.reference("conv-vae")[0]
    few = ["--count", 1, "--steps", 2, "--sampler", "ddim", *CPU, "--out", "out.png"]
    sample, resume = ["sample", "run", *few], ["train", "--resume", "run", *CPU, "--steps"]
    more = {kind: [*resume, KINDS[kind][2] + 2] for kind in ("ddpm", "ldm", "conv-vae")}
    train = ["train", "digits", "--data", "images:pictures", "--out", "new", *CPU, "--steps", 3, *SMALL]
    look, export = ["data", "images:pictures"], ["export", "run", "out"]
    pictures = {"pictures": lab.pictures(), "run": vae}
    folder, unet = {"folder": lab.exported("ddpm")}, "folder/unet"
    mnist, images = lab.make_folder("special-mnist"), "train-images-idx3-ubyte"
    (mnist / images).write_bytes(idx(random.Random(3), True))
    (mnist / "train-labels-idx1-ubyte").write_bytes(idx(random.Random(3), False))
    run, vae, ldm = {"run": run}, {"run": vae}, {"run": ldm}
    refused = lambda name, folders, file, *commands: Target(name, folders, file, REFUSES, *commands)
    cases = [
        refused("recipe", {}, "my.toml", ["train", "my.toml", "--out", "new", *CPU]),
        refused("recipe.toml of a run", run, "run/recipe.toml", sample, more["ddpm"]),
        refused("checkpoint", run, last, sample, ["sample", last, *few], more["ddpm"], export),
        refused("metrics.jsonl", run, "run/metrics.jsonl", more["ddpm"], ["figure", "loss", "run"]),
        refused("evaluations.jsonl", vae, "run/evaluations.jsonl", more["conv-vae"]),
        refused("picture", pictures, "pictures/a/00.png", ["encode", "run", "pictures/a/00.png", *CPU]),
        refused("VAE of an ldm", ldm, "run/vae.safetensors", sample),
        refused("noise", run, "noise", ["sample", "run", "--noise", "noise", *CPU]),
        refused("latents", vae, "latents", ["decode", "run", "latents", *CPU]),
        refused("config.json of a folder", folder, f"{unet}/config.json", ["sample", "folder", *few]),
        refused("weights of a folder", folder, f"{unet}/{WEIGHTS}", ["sample", "folder", *few]),
        refused("IDX file", {"mnist": mnist}, f"mnist/{images}", ["data", "mnist:mnist"]),
        # Latents can be encoded again, and in a folder of pictures what is no regular file is none.
        Target("cached latents", ldm, "run/latents.safetensors", ORDERLY, more["ldm"]),
        Target("picture of a folder", pictures, "pictures/a/00.png", ORDERLY, look, [*train, *DIFFUSION]),
    ]
    done = 0
    for target in cases:
        for command in target.commands:
            for kind in ("FIFO", "/dev/zero"):
                done += 1

                def prepare(case):
                    target.copy(case)
                    place = case / target.file
                    place.unlink(missing_ok=True)
                    if kind == "FIFO":
                        os.mkfifo(place)
                    else:
                        place.symlink_to(kind)

                with lab.case(prepare) as case:
                    # Shown too: /dev/zero fills the memory of a machine in seconds.
                    shown = f"prlimit --as={2 * GB} denoir {shlex.join(map(str, command))}"
                    limits = {resource.RLIMIT_AS: 2 * GB}
                    outcome = lab.run(command, case, seconds=5, shown=shown, limits=limits)
                    wrong = outcome.wrong()
                    if not wrong and outcome.status == 0 and target.demand == REFUSES:
                        wrong = "accepts it"
                    if wrong:
                        what = f"{kind} as {target.name}: `{shown_command(command)}` {wrong}"
                        lab.found(what, [outcome.line])
    return f"{done} special files"
