"""The default recipe trained by denoir and by PyTorch with diffusers, and how good the samples of both are.

    python tools/reference/digits_training.py PATH/TO/denoir [--seeds N] [--steps N] [--threads N]

Trains `digits-classes` with denoir, without a class that stands for none; trains diffusers' UNet2DModel from the same initial
weights, on as many generated digits, with the recipe's numbers (v of a cosine schedule, Adam, warm-up and cosine, clipping, EMA with
diffusers' warm-up), and writes a folder of the library.  A classifier that denoir trains then judges samples of both, drawn from
folders of the library by one program with one sampler: Fréchet distance, accuracy, the share it is sure of.  Prints a row for each
seed and training, and the means.  Needs pillow.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from PIL import Image

BATCH, LR, WARMUP, EMA = 32, 1.5e-3, 100, 0.995


def denoir(binary, *arguments):
    """Runs a command on the CPU device; its standard output."""
    threads = os.environ | {"RAYON_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, env=threads)
    if done.returncode != 0:
        raise SystemExit(f"denoir {' '.join(map(str, arguments))}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def digits(binary, count, seed, folder):
    """Images [count, 1, 28, 28] in [-1, 1] and classes."""
    denoir(binary, "data", "digits", "--image-size", 28, "--count", count, "--seed", seed, "--out", folder)
    files = sorted(folder.glob("*/*.png"), key=lambda f: f.name)
    assert len(files) == count, (len(files), count)
    images = np.stack([np.asarray(Image.open(f).convert("L")) for f in files])
    return torch.from_numpy(images)[:, None].float() / 127.5 - 1, torch.tensor([int(f.parent.name) for f in files])


def train(unet, images, classes, steps, seed):
    """The training loop of the library's examples, with the recipe's numbers."""
    torch.manual_seed(seed)
    noise_scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.Adam(unet.parameters(), lr=LR)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    ema = EMAModel(unet.parameters(), decay=EMA, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    order = torch.randperm(len(images))
    unet.train()
    for step in range(steps):
        batch = order[step * BATCH:(step + 1) * BATCH]
        x0, noise = images[batch], torch.randn(BATCH, 1, 28, 28)
        t = torch.randint(1000, (BATCH,))
        out = unet(noise_scheduler.add_noise(x0, noise, t), t, class_labels=classes[batch]).sample
        loss = F.mse_loss(out, noise_scheduler.get_velocity(x0, noise, t))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(unet.parameters())
    ema.copy_to(unet.parameters())
    return loss.item()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("denoir", type=lambda s: pathlib.Path(s).resolve())
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--steps", type=int, default=800)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--count", type=int, default=1000, help="samples")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory(prefix="digits-") as folder:
        compare(a, pathlib.Path(folder))


def compare(a, at):
    quiet = ["--device", "cpu", "--out"]
    denoir(a.denoir, "train", "digits-classifier", *quiet, at / "classifier")
    rows = {"denoir": [], "PyTorch": []}
    for seed in range(a.seeds):
        run, start = at / f"run-{seed}", at / f"start-{seed}"
        ours, theirs = at / f"denoir-{seed}", at / f"pytorch-{seed}"
        of_seed = ["--set", f"seed={seed}", "--set", "sample_every=0", "--set", "label_dropout=0", "--set", "unet.num_class_embeds=10"]
        before = time.perf_counter()
        denoir(a.denoir, "train", "--set", f"steps={a.steps}", *of_seed, *quiet, run)
        seconds = [time.perf_counter() - before]
        denoir(a.denoir, "export", run, ours)
        # One step too small to change a weight: the initial ones.
        denoir(a.denoir, "train", "--set", "steps=1", "--set", "lr=1e-30", *of_seed, *quiet, at / f"first-{seed}")
        denoir(a.denoir, "export", at / f"first-{seed}", start)
        denoir(a.denoir, "export", at / f"first-{seed}", theirs)
        unet = UNet2DModel.from_pretrained(start / "unet")
        images, classes = digits(a.denoir, a.steps * BATCH, 1000 + seed, at / f"data-{seed}")
        before = time.perf_counter()
        train(unet, images, classes, a.steps, seed)
        seconds.append(time.perf_counter() - before)
        unet.save_pretrained(theirs / "unet")
        found = json.loads(denoir(a.denoir, "evaluate", ours, theirs, "--classifier", at / "classifier", "--count", a.count,
                                  "--sampler", "dpmpp-2m", "--steps", 20, "--guidance", 1, "--seed", seed, "--device", "cpu", "--json"))
        for (name, of), row, took in zip(rows.items(), found["rows"], seconds):
            of.append([row["frechet"], row["accuracy"], row["clear"]])
            frechet, accuracy, clear = of[-1]
            print(f"seed {seed}  {name:8}  Fréchet {frechet:.3f}  accuracy {accuracy:.3f}  clear {clear:.3f}  training {took:.0f} s",
                  flush=True)
    for name, of in rows.items():
        print(f"mean    {name:8}  Fréchet {np.mean([r[0] for r in of]):.3f}")


if __name__ == "__main__":
    main()
