"""Bits per dimension of one checkpoint: `denoir likelihood` and the formula of guided-diffusion in PyTorch.

    python tools/reference/bits_per_dim.py PATH/TO/denoir

Trains a small U-Net with a learned variance for some steps, exports it, and computes its bound on held-out images twice: by
denoir, and here on diffusers' UNet2DModel by what `calc_bpd_loop` of openai/guided-diffusion computes (written down again: the
tanh form of the normal integral, probabilities of at least 1e-12, x0 clipped), from the same noise.  Both variances of the table
are tried, and predictions of the noise and of v.  An error above 0.001 bits/dim ends it with status 1.
"""
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import UNet2DModel

T, SIDE, IMAGES = 40, 16, 6
NOISE = 3  # the stream of noise


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) of arrays of 32-bit words."""
    c = [x.astype(np.uint64) for x in counter]
    k = [np.uint64(x) for x in key]
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return c


def normal(size, step, sample, seed=0):
    """denoir's normal numbers of a sample at a step, from blocks of four words."""
    block = np.arange((size + 3) // 4, dtype=np.uint32)
    fill = lambda value: np.full_like(block, value)
    words = philox([block, fill(sample), fill(step), fill(NOISE)], [seed, 0])
    u = [((w >> np.uint64(9)).astype(np.float64) + 0.5) / 2.0**23 for w in words]
    r1, r2 = np.sqrt(-2 * np.log(u[0])), np.sqrt(-2 * np.log(u[2]))
    a, b = 2 * np.pi * u[1], 2 * np.pi * u[3]
    return np.stack([r1 * np.cos(a), r1 * np.sin(a), r2 * np.cos(b), r2 * np.sin(b)], 1).reshape(-1)[:size]


def idx(path, array):
    path.write_bytes(struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def digits(r, count):
    """Grey pictures of blurred strokes, which is all that the test needs."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    of = lambda: np.exp(-((x - r.uniform(.2, .8)) ** 2 * r.uniform(5, 60) + (y - r.uniform(.2, .8)) ** 2 * r.uniform(5, 60)))
    return np.stack([np.clip(255 * of(), 0, 255).astype(np.uint8) for _ in range(count)])


def approx_cdf(z):
    return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def decoder(x, mean, log_scale):
    centred, per = x - mean, np.exp(-log_scale)
    plus, minus = approx_cdf(per * (centred + 1 / 255)), approx_cdf(per * (centred - 1 / 255))
    log = lambda p: np.log(np.maximum(p, 1e-12))
    return np.where(x < -.999, log(plus), np.where(x > .999, log(1 - minus), log(plus - minus)))


def bits_per_dim(model, images, betas, prediction, kind):
    """`total_bpd` of calc_bpd_loop, mean over images."""
    abar = np.cumprod(1 - betas)
    before = np.append(1, abar[:-1])
    tilde = betas * (1 - before) / (1 - abar)
    log_tilde = np.log(np.append(tilde[1], tilde[1:]))
    c1, c2 = betas * np.sqrt(before) / (1 - abar), (1 - before) * np.sqrt(1 - betas) / (1 - abar)
    total = []
    for number, x0 in enumerate(images):
        mean_T, log_var_T = np.sqrt(abar[-1]) * x0, np.log(1 - abar[-1])
        bits = 0.5 * np.mean(-1 - log_var_T + np.exp(log_var_T) + mean_T**2)
        for t in range(len(betas)):
            a, b = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
            x = a * x0 + b * normal(x0.size, t, number).reshape(x0.shape)
            with torch.no_grad():
                out = model(torch.tensor(x, dtype=torch.float32)[None, None], t).sample[0].double().numpy()
            p = out[0]
            clean = {"epsilon": (x - b * p) / a, "v_prediction": a * x - b * p, "sample": p}[prediction].clip(-1, 1)
            mean = c1[t] * clean + c2[t] * x
            if kind == "learned_range":
                frac = (out[1] + 1) / 2
                log_var = frac * np.log(betas[t]) + (1 - frac) * log_tilde[t]
            else:
                log_var = np.full_like(mean, log_tilde[t])
            if t == 0:
                bits += -np.mean(decoder(x0, mean, 0.5 * log_var))
            else:
                difference = c1[t] * x0 + c2[t] * x - mean
                bits += 0.5 * np.mean(-1 + log_var - log_tilde[t] + np.exp(log_tilde[t] - log_var) + difference**2 * np.exp(-log_var))
        total.append(bits / np.log(2))
    return float(np.mean(total))


def main(denoir):
    run = lambda *arguments: subprocess.run([denoir, *map(str, arguments)], check=True, capture_output=True, text=True).stdout
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        at, r = pathlib.Path(folder), np.random.default_rng(0)
        held_out = digits(r, IMAGES)
        for name, pictures in [("train", digits(r, 200)), ("t10k", held_out)]:
            idx(at / f"{name}-images-idx3-ubyte", pictures)
            idx(at / f"{name}-labels-idx1-ubyte", np.zeros(len(pictures), np.uint8))
        images = held_out / 127.5 - 1
        for prediction in ["epsilon", "v_prediction"]:
            for kind in ["learned_range", "fixed_small"]:
                settings = dict(image_size=SIDE, batch_size=16, timesteps=T, sample_steps=T, prediction_type=prediction, variance=kind,
                                sample_every="never", beta_schedule="squaredcos_cap_v2", lr=1e-3, lr_warmup=10, evaluate_count=0)
                settings["unet.block_out_channels"], settings["unet.norm_num_groups"] = "[16,32]", 8
                settings["unet.down_block_types"] = '["DownBlock2D","AttnDownBlock2D"]'
                settings["unet.up_block_types"] = '["AttnUpBlock2D","UpBlock2D"]'
                settings["unet.out_channels"] = 2 if kind == "learned_range" else 1
                trained, exported = at / f"{prediction}-{kind}", at / f"{prediction}-{kind}-exported"
                flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
                run("train", "digits", "--data", f"mnist:{at}", "--steps", 100, "--device", "cpu", "--out", trained, *flags)
                run("export", trained, exported)
                ours = json.loads(run("likelihood", trained, "--tanh", "--count", IMAGES, "--device", "cpu", "--json"))
                where = exported / "unet" if (exported / "unet").is_dir() else exported
                f = lambda u: np.cos((u + .008) / 1.008 * np.pi / 2) ** 2
                betas = np.array([min(1 - f((i + 1) / T) / f(i / T), .999) for i in range(T)])
                theirs = bits_per_dim(UNet2DModel.from_pretrained(where).eval(), images, betas, prediction, kind)
                difference = abs(ours["bits_per_dim"] - theirs)
                worst = max(worst, difference)
                print(f"{prediction}, {kind}: denoir {ours['bits_per_dim']:.6f}, guided-diffusion's formula {theirs:.6f}, {difference:.1e} apart")
    return 0 if worst < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
