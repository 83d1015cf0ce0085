"""Random models of diffusers through denoir and back, and denoir's own runs in diffusers.

    python tools/reference/round_trip.py PATH/TO/denoir [SEED]

Forty models, saved by diffusers in every form that it has, read with `denoir import`, written with `denoir export`, loaded by
diffusers again.  The weights must be the same bits, and so must the answers to the same input.

Forty pipelines of latent diffusion, with an AutoencoderKL or a VQModel and a scheduler of any class and any options: diffusers
draws the same pictures of a torch seed from the folder that it saved and from the one that came back, bit by bit, and denoir
the same from either and from the run in between.

Five pipelines that denoir trains some steps in between: `denoir sample --rng torch` of the run and DDPMPipeline from the
exported folder must draw the same pictures from the same seed.  Then runs that denoir starts itself, of pixels (digits), of an
AutoencoderKL (digits-kl), of a VQModel (digits-vq) and of latents on the first (digits-ldm): diffusers loads what `denoir export` writes of each.

Two f32 programs differ by about 1e-6 in each prediction; a few steps leave less than 1e-4 of that in an image from 0 to 1, where
a level is 4e-3.  So a value can differ by one level, where it lies that near to the middle between two (at most one in twenty of
1e-4 would; one in a hundred is allowed), and never by more.
"""
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np
import diffusers
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, LDMPipeline, UNet2DModel, VQModel
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

import folders

logging.disable_progress_bar()

FORMS = {"safetensors": {}, "bin": dict(safe_serialization=False), "shards": dict(max_shard_size="8KB"),
         "bin shards": dict(max_shard_size="8KB", safe_serialization=False), "fp16": dict(variant="fp16")}
STEPS = 5


def answer(model):
    x, t, labels = folders.question(model, 7)
    with torch.no_grad():
        return (model(x, t, class_labels=labels) if isinstance(model, UNet2DModel) else model(x)).sample


def there_and_back(denoir, r, number, at):
    make, form = r.choice([folders.unet, folders.autoencoder]), r.choice(list(FORMS))
    model = folders.vivid(make(r), number)
    if form == "fp16":
        model = model.half()
    whole = isinstance(model, UNet2DModel) and form == "safetensors"
    saved = DDPMPipeline(unet=model, scheduler=DDPMScheduler()) if whole else model
    saved.save_pretrained(at / "theirs", **FORMS[form])
    denoir("import", at / "theirs", at / "run")
    denoir("export", at / "run", at / "ours")
    if isinstance(model, UNet2DModel):
        back = DDPMPipeline.from_pretrained(at / "ours").unet
    else:
        back = type(model).from_pretrained(at / "ours")
    model = model.float()
    theirs, ours = model.state_dict(), back.state_dict()
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    assert all(torch.equal(v, ours[k]) for k, v in theirs.items()), [k for k, v in theirs.items() if not torch.equal(v, ours[k])]
    assert torch.equal(answer(model), answer(back.eval())), (form, model.config)
    print(number, type(model).__name__, form, f"{sum(p.numel() for p in model.parameters())} parameters: the same")


def scheduler(r):
    """Any class with any options, over a schedule whose largest sigma is about 1: the models are random, and what is no prediction
    of noise leads astray by as much as sigma times its error."""
    flag = lambda: r.random() < 0.5
    spacing = dict(timestep_spacing=r.choice(["leading", "trailing", "linspace"]), steps_offset=r.choice([0, 1]))
    sigmas = r.choice([{}, dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True)])
    any_of, two = (dict(prediction_type=r.choice(kinds)) for kinds in (["epsilon", "v_prediction", "sample"], ["epsilon", "v_prediction"]))
    clip = r.choice([dict(clip_sample=False), dict(clip_sample=True, clip_sample_range=r.choice([1.0, 2.5])),
                     dict(clip_sample=False, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=r.choice([1.5, 3.0]))])
    final = dict(final_sigmas_type=r.choice(["zero", "sigma_min"]))
    order = r.randint(1, 3)
    name, own = r.choice([
        ("DDPM", dict(variance_type=r.choice(["fixed_small", "fixed_large", "fixed_small_log"]), **any_of, **clip, **spacing)),
        ("DDIM", dict(set_alpha_to_one=flag(), **any_of, **clip, **spacing)),
        ("EulerDiscrete", dict(interpolation_type=r.choice(["linear", "linear", "log_linear"]), **any_of, **sigmas, **spacing, **final)),
        ("EulerAncestralDiscrete", dict(**two, **spacing)),
        ("HeunDiscrete", dict(clip_sample=flag(), **any_of, **sigmas, **spacing)),
        ("LMSDiscrete", dict(**any_of, **sigmas, **spacing)),
        ("DPMSolverMultistep", dict(
            algorithm_type=r.choice(["dpmsolver++", "sde-dpmsolver++"]), solver_order=order, lower_order_final=flag(),
            solver_type=r.choice(["midpoint", "heun"]), euler_at_final=flag(), **any_of, **sigmas, **spacing, **final)),
        ("PNDM", dict(skip_prk_steps=flag(), set_alpha_to_one=flag(), **two,
                      timestep_spacing=r.choice(["leading", "trailing"]), steps_offset=r.choice([0, 1]))),
        ("UniPCMultistep", dict(solver_order=order, solver_type=r.choice(["bh1", "bh2"]), disable_corrector=r.choice([[], [0, 1]]),
                                **any_of, **sigmas, **spacing, **final)),
    ])
    betas = r.choice(["linear", "scaled_linear"] + ["sigmoid"] * (name == "DDPM"))
    return getattr(diffusers, name + "Scheduler")(beta_schedule=betas, beta_start=r.choice([1e-5, 1e-4]), beta_end=2e-3, **own)


def read(folder):
    """Pictures of a folder, in order, [N, H, W, 3]."""
    return np.stack([np.asarray(Image.open(f).convert("RGB"), int) for f in sorted(folder.glob("*.png"))])


def drawn(pipeline, seed, **more):
    pipeline.set_progress_bar_config(disable=True)
    # LDMPipeline scales its noise by what the scheduler says before it has been told the steps; all others ask later.
    pipeline.scheduler.set_timesteps(STEPS)
    # The global generator: LDMPipeline gives its scheduler none, which then takes that.
    images = pipeline(batch_size=2, num_inference_steps=STEPS, generator=torch.manual_seed(seed), **more).images
    return np.stack([np.asarray(i.convert("RGB"), int) for i in images])


def same(ours, theirs, what):
    """The share of values that are one level apart."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    apart = abs(ours - theirs)
    share = (apart > 0).mean()
    assert apart.max() <= 1 and share <= 0.01, (apart.max(), share, what)
    return f"{share:.2%} of the values one level apart, {((ours > 0) & (ours < 255)).mean():.0%} neither black nor white"


def plain(model):
    """Whether pipelines can ask it: they know no classes, and come to t = 0 and to what lies between two timesteps."""
    c = model.config
    return c.time_embedding_type == "positional" and c.class_embed_type is None and c.num_class_embeds is None


def usable(vae, z):
    """Whether latents are numbers (of UniPC with bh1 the library makes none at sigma = 0), none as near to two codes as rounding is."""
    if not isinstance(vae, VQModel):
        return z.isfinite().all()
    codes = vae.quantize.embedding.weight
    apart = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, codes.shape[1]), codes).sort(1).values
    return z.isfinite().all() and (apart[:, 1] - apart[:, 0]).min() > 1e-2


def latent_pipeline(denoir, r, number, at):
    while True:
        unet, vae = folders.unet(r), folders.autoencoder(r)
        if not plain(unet) or unet.config.in_channels != (vae.config.get("vq_embed_dim") or vae.config.latent_channels):
            continue
        steps = scheduler(r)
        pipeline = LDMPipeline(vqvae=folders.vivid(vae, number), unet=folders.vivid(unet, number + 1), scheduler=steps)
        decode, decoded = vae.decode, []
        vae.decode = lambda z: (decoded.append(z), decode(z))[1]
        theirs = drawn(pipeline, number)
        vae.decode = decode
        if usable(vae, decoded[0]):
            break
    pipeline.save_pretrained(at / "theirs")
    denoir("import", at / "theirs", at / "run")
    denoir("export", at / "run", at / "ours")
    back = drawn(LDMPipeline.from_pretrained(at / "ours"), number)
    assert (back == theirs).all(), (abs(back - theirs).max(), steps.config)
    for folder in ("theirs", "run", "ours"):
        denoir("sample", at / folder, "--steps", STEPS, "--count", "2", "--seed", number, "--rng", "torch", "--device", "cpu",
               "--out", at / f"drawn-{folder}")
        said = same(read(at / f"drawn-{folder}"), theirs, steps.config)
    print(number, type(vae).__name__, type(steps).__name__, said)


def trained_in_between(denoir, r, number, at):
    model = folders.unet(r)
    while not plain(model) or model.config.in_channels not in (1, 3):
        model = folders.unet(r)
    model = folders.vivid(model, number)
    DDPMPipeline(unet=model, scheduler=DDPMScheduler()).save_pretrained(at / "theirs")
    noise = np.random.default_rng(number).integers(0, 256, (4, 8, 8, 3), np.uint8)
    save(noise, at / "pictures")
    settings = [w for s in ("batch_size=4", "sample_steps=2", "sample_count=2", "lr=1e-3") for w in ("--set", s)]
    denoir("import", at / "theirs", at / "run", "--data", f"images:{at / 'pictures'}", *settings)
    denoir("train", "--resume", at / "run", "--steps", "5", "--device", "cpu")
    said = exported(denoir, DDPMPipeline, number, at / "run", at / "ours")
    before, after = model.state_dict(), UNet2DModel.from_pretrained(at / "ours/unet").state_dict()
    moved = max((after[k] - v).abs().max().item() for k, v in before.items())
    assert moved > 1e-6, "training changed nothing"
    print(number, f"trained (weights moved by up to {moved:.1e}): {said}")


def save(pictures, folder):
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")


def exported(denoir, kind, seed, run, out):
    """Pictures of a run, and of its folder as diffusers loads it."""
    denoir("export", run, out, "--weights", "ema")
    denoir("sample", run, "--steps", STEPS, "--count", "2", "--seed", seed, "--rng", "torch", "--device", "cpu", "--out", run / "drawn")
    return same(read(run / "drawn"), drawn(kind.from_pretrained(out), seed), kind)


def encoded_and_decoded(denoir, kind, seed, run):
    """Latents and pictures of an autoencoder's run, and of its folder as diffusers loads it."""
    denoir("export", run, run / "theirs")
    vae = kind.from_pretrained(run / "theirs").eval()
    pictures = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), np.uint8)
    save(pictures, run / "pictures")
    files = sorted((run / "pictures").glob("*.png"))
    denoir("encode", run, *files, "--device", "cpu", "--out", run / "latents.safetensors")
    denoir("decode", run, run / "latents.safetensors", "--device", "cpu", "--out", run / "decoded")
    ours = load_file(run / "latents.safetensors")
    with torch.no_grad():
        found = vae.encode(torch.from_numpy(pictures).float()[:, None] / 127.5 - 1)
        images = vae.decode(ours["latents"]).sample
    if kind is VQModel:
        pairs = [(ours["mean"], found.latents)]
    else:
        pairs = [(ours["mean"], found.latent_dist.mean), (ours["log_var"], found.latent_dist.logvar)]
    errors = [((mine - its).norm() / its.norm()).item() for mine, its in pairs]
    assert max(errors) <= 1e-5, errors
    theirs = ((images / 2 + 0.5).clamp(0, 1) * 255).round().int().permute(0, 2, 3, 1).numpy().repeat(3, 3)
    said = same(read(run / "decoded"), theirs, "decoded")
    return f"latents off by {max(errors):.1e}; decoded, {said}"


def started_here(denoir, r, number, at):
    few = [w for s in ("steps=5", "batch_size=4", "sample_count=2") for w in ("--set", s)]
    train = lambda recipe, *more: denoir("train", recipe, "--out", at / recipe, "--device", "cpu", *few, *more)
    train("digits", "--set", "sample_steps=2")
    print("digits:", exported(denoir, DDPMPipeline, number, at / "digits", at / "pixels"))

    # A batch of four must leave no code without latents for certain.
    few_codes = ("--set", "vae.num_vq_embeddings=32")
    for recipe, kind, more in (("digits-kl", AutoencoderKL, ()), ("digits-vq", VQModel, few_codes)):
        train(recipe, "--set", "evaluate_count=4", *more)
        print(f"{recipe}:", encoded_and_decoded(denoir, kind, number, at / recipe))

    train("digits-ldm", "--vae", at / "digits-kl", "--set", "sample_steps=2")
    print("digits-ldm:", exported(denoir, LDMPipeline, number, at / "digits-ldm", at / "latent"))


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    r = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    denoir = lambda *args: subprocess.run([program, *map(str, args)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for part, count in ((there_and_back, 40), (latent_pipeline, 40), (trained_in_between, 5), (started_here, 1)):
        print(part.__name__.replace("_", " "))
        for number in range(count):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    part(denoir, r, number, pathlib.Path(folder))
                except subprocess.CalledProcessError as e:
                    sys.exit(e.stderr.decode())


main()
