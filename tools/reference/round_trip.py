"""Random models of diffusers through denoir and back.

    python tools/reference/round_trip.py PATH/TO/denoir [SEED]

Forty models, saved by diffusers in every form that it has, read with `denoir import`, written with `denoir export`, loaded by
diffusers again.  The weights must be the same bits, and so must the answers to the same input.

Then five pipelines that denoir trains some steps in between: `denoir sample --rng torch` of the run and DDPMPipeline from the
exported folder must draw the same pictures from the same seed.  Two f32 programs differ by about 1e-6 in each prediction; five
steps leave less than 1e-4 of that in an image from 0 to 1, where a level is 4e-3.  So a value can differ by one level, where it
lies that near to the middle between two (at most one in twenty of 1e-4 would; one in a hundred is allowed), and never by more.
"""
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from PIL import Image

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


def trained_in_between(denoir, r, number, at):
    while True:
        model = folders.unet(r)
        c = model.config
        plain = c.time_embedding_type != "fourier" and c.class_embed_type is None and c.num_class_embeds is None
        if plain and c.in_channels in (1, 3):
            break
    model = folders.vivid(model, number)
    DDPMPipeline(unet=model, scheduler=DDPMScheduler()).save_pretrained(at / "theirs")
    (at / "pictures").mkdir()
    noise = np.random.default_rng(number).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(at / "pictures" / f"{i}.png")
    settings = [w for s in ("batch_size=4", "sample_steps=2", "sample_count=2", "lr=1e-3") for w in ("--set", s)]
    denoir("import", at / "theirs", at / "run", "--data", f"images:{at / 'pictures'}", *settings)
    denoir("train", "--resume", at / "run", "--steps", "5", "--device", "cpu")
    denoir("export", at / "run", at / "ours", "--weights", "ema")
    denoir("sample", at / "run", "--steps", STEPS, "--count", "2", "--seed", number, "--rng", "torch", "--device", "cpu",
           "--out", at / "drawn")
    files = sorted((at / "drawn").glob("*.png"))
    ours = np.stack([np.asarray(Image.open(f).convert("RGB"), int) for f in files])

    pipeline = DDPMPipeline.from_pretrained(at / "ours")
    pipeline.set_progress_bar_config(disable=True)
    before, after = model.state_dict(), pipeline.unet.state_dict()
    moved = max((after[k] - v).abs().max().item() for k, v in before.items())
    assert moved > 1e-6, "training changed nothing"
    drawn = pipeline(batch_size=2, num_inference_steps=STEPS, generator=torch.manual_seed(number)).images
    theirs = np.stack([np.asarray(i.convert("RGB"), int) for i in drawn])
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    apart = abs(ours - theirs)
    share = (apart > 0).mean()
    assert apart.max() <= 1 and share <= 0.01, (apart.max(), share, c)
    print(number, f"trained (weights moved by up to {moved:.1e}): {len(ours)} pictures, {share:.2%} of the values one level apart,"
          f" {((ours > 0) & (ours < 255)).mean():.0%} of them neither black nor white")


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    r = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    denoir = lambda *args: subprocess.run([program, *map(str, args)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for part, count in ((there_and_back, 40), (trained_in_between, 5)):
        for number in range(count):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    part(denoir, r, number, pathlib.Path(folder))
                except subprocess.CalledProcessError as e:
                    sys.exit(e.stderr.decode())


main()
