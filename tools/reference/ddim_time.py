"""DDIM sampling of a random model of google/ddpm-cifar10-32's configuration (35,746,307 parameters): denoir and diffusers in
turns on the same cores.

    python tools/reference/ddim_time.py PATH/TO/denoir [--rounds 3] [--steps 50] [--batch 1] [--threads 2]

Counted against denoir is the whole command `denoir sample FOLDER --device cpu`: it starts, reads 143 MB, plans, samples, and
writes its picture.  Of diffusers only the pipeline's call is: Python, torch and the weights are loaded before, and one call has
warmed it up.  Both draw from torch's generator at seed 0, and the pictures of ten steps must be the same to one level.  Those of
fifty need not be: an untrained net enlarges differences from step to step (in diffusers itself, a first sample times 1 + 1e-6
ends 18 levels away).
"""
import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from PIL import Image

import configs

COMPARED = 10  # steps

logging.disable_progress_bar()
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("denoir", type=pathlib.Path)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--threads", type=int, default=os.cpu_count())
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
pipeline = DDIMPipeline(unet=UNet2DModel(**configs.KNOWN["cifar10"]).eval(), scheduler=DDIMScheduler())
pipeline.set_progress_bar_config(disable=True)
assert sum(p.numel() for p in pipeline.unet.parameters()) == configs.COUNTS["cifar10"]


def theirs(steps):
    return pipeline(batch_size=args.batch, num_inference_steps=steps, generator=torch.manual_seed(0)).images


with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    # The schedule is the same; the sampler is chosen by name.
    DDPMPipeline(unet=pipeline.unet, scheduler=DDPMScheduler()).save_pretrained(at / "model")
    def ours(steps):
        command = [args.denoir.resolve(), "sample", at / "model", "--sampler", "ddim", "--steps", steps, "--count", args.batch,
                   "--seed", 0, "--rng", "torch", "--device", "cpu", "--out", at / "drawn"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                              env=os.environ | {"RAYON_NUM_THREADS": str(args.threads)})
        assert done.returncode == 0, done.stderr
        files = sorted((at / "drawn").glob("*.png"))
        pictures = [np.asarray(Image.open(f).convert("RGB"), int) for f in files]
        for file in files:
            file.unlink()
        return pictures

    pairs = zip(ours(COMPARED), theirs(COMPARED), strict=True)
    apart = max(abs(a - np.asarray(b.convert("RGB"), int)).max() for a, b in pairs)
    assert apart <= 1, f"the pictures of {COMPARED} steps differ by {apart} levels"
    seconds = {"denoir": [], "diffusers": []}
    for number in range(args.rounds):
        for who, draw in (("denoir", ours), ("diffusers", theirs)):
            begin = time.perf_counter()
            draw(args.steps)
            seconds[who].append(time.perf_counter() - begin)
        print(f"round {number}: " + ", ".join(f"{who} {took[-1]:.2f} s" for who, took in seconds.items()), flush=True)
mine, reference = (statistics.median(took) for took in seconds.values())
print(f"{args.steps} DDIM steps of {args.batch} image(s), {args.threads} threads: denoir {mine:.2f} s, diffusers {reference:.2f} s, "
      f"ratio of medians {mine / reference:.2f}")
