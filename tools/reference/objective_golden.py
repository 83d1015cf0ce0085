"""Whole models under two objectives, with every gradient, in f64: a U-Net that learns its variance, and a noisy classifier.

    python objective_golden.py     # tests/golden/objective_<case>.safetensors

The file format is that of unet_golden.py, whose rules hold (the worst of PyTorch's f32 runs is the yardstick).

`hybrid` and `bound` (Nichol & Dhariwal 2021, as `training_losses` of openai/guided-diffusion computes them, written down again, but
with the exact normal integral): a UNet2DModel whose output is the noise and v, in [-1, 1] between the logarithms of both variances.

    terms = KL(q(x_{t-1} | x_t, x0), p(x_{t-1} | x_t)) at t > 0, -ln P(x0's bin) at t = 0, mean over elements, in bits
    bound = T mean_N(terms)                                   loss = bound
    mse = mean((out[:C] - noise)^2)                           loss = mse + weight T mean_N(terms(sg(out[:C]), out[C:]))

In: x0, noise, t; x, the f32 value of the noised x0 that the model sees.  f64: out, each (terms T), loss, grad/<name>.

`attention` and `mean`: diffusers' way down and middle, then a vector of all pixels (Dhariwal & Nichol 2021, section 4.2), two linear
layers and the cross entropy, the mean over samples.  In: x, t, labels.  f64: out (the logits), dx, loss, grad/<name>.
"""
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unet_golden import TimestepsF64, build, config_json, errors, save, weigh

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
STEPS, WEIGHT = 1000, 0.001
VARIANCE = dict(sample_size=8, in_channels=2, out_channels=4, block_out_channels=[8, 12], norm_num_groups=4, layers_per_block=1,
                down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"],
                attention_head_dim=4, resnet_time_scale_shift="scale_shift")
CLASSIFIER = dict(sample_size=8, in_channels=2, out_channels=2, block_out_channels=[8, 12], norm_num_groups=4, layers_per_block=1,
                  down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"],
                  attention_head_dim=4)
CLASSES, FEATURES = 5, 6


def every_path(model, run):
    """The f32 runs of unet_golden.f32_runs: `run(memory format)` by each of PyTorch's paths on a CPU."""
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            for attention in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
                with torch.backends.mkldnn.flags(enabled=onednn), sdpa_kernel([attention, SDPBackend.MATH]):
                    model.to(memory_format=layout)
                    yield run(layout)
    model.to(memory_format=torch.contiguous_format)


def log_bin(x0, mean, log_variance):
    """ln P of the bin of width 2/255 around x0, open to the outside at -1 and 1."""
    p, q = ((x0 - mean + s / 255) * torch.exp(-0.5 * log_variance) for s in (1, -1))
    flip = p + q > 0  # the tail that is computed is the near one
    p, q = torch.where(flip, -q, p), torch.where(flip, -p, q)
    inside = torch.special.log_ndtr(p) + torch.log1p(-torch.exp(torch.special.log_ndtr(q) - torch.special.log_ndtr(p)))
    low, high = (x0 - mean + 1 / 255) * torch.exp(-0.5 * log_variance), (mean - x0 + 1 / 255) * torch.exp(-0.5 * log_variance)
    return torch.where(x0 < -0.999, torch.special.log_ndtr(low), torch.where(x0 > 0.999, torch.special.log_ndtr(high), inside))


def terms(out, x0, noise, t):
    """A term of the bound of each sample, in bits."""
    betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    tilde = betas * (1 - before) / (1 - bar)
    low, high = torch.log(torch.cat([tilde[1:2], tilde[1:]])), torch.log(betas)
    of_x0, of_x_t = betas * before.sqrt() / (1 - bar), (1 - before) * (1 - betas).sqrt() / (1 - bar)
    at = lambda table: table[t][:, None, None, None].to(out.dtype)
    x_t = at(bar.sqrt()) * x0 + at((1 - bar).sqrt()) * noise
    eps, v = out.chunk(2, dim=1)
    x0_pred = at(1 / bar.sqrt()) * x_t - at((1 / bar - 1).sqrt()) * eps
    mean, wanted = (at(of_x0) * x + at(of_x_t) * x_t for x in (x0_pred, x0))
    log_variance = (v + 1) / 2 * at(high) + (1 - v) / 2 * at(low)
    d = at(low) - log_variance
    kl = 0.5 * (-1 - d + torch.exp(d) + (wanted - mean) ** 2 * torch.exp(-log_variance))
    nll = -log_bin(x0, mean, log_variance)
    return torch.where((t == 0)[:, None, None, None], nll, kl).mean(dim=(1, 2, 3)) / math.log(2)


def variance_run(model, case, dtype, x, x0, noise, t):
    model = model.to(dtype)
    model.zero_grad()
    out = model(x.to(dtype), t.to(dtype)).sample
    x0, noise = x0.to(dtype), noise.to(dtype)
    if case == "bound":
        each = terms(out, x0, noise, t) * STEPS
        loss = each.mean()
    else:
        eps, v = out.chunk(2, dim=1)
        each = terms(torch.cat([eps.detach(), v], dim=1), x0, noise, t) * STEPS
        loss = F.mse_loss(eps, noise) + WEIGHT * each.mean()
    loss.backward()
    grads = {n: p.grad.double().clone() for n, p in model.named_parameters()}
    return {"out": out.detach().double(), "each": each.detach().double(), "loss": loss.detach().double().reshape(1)}, grads


def variance(case, seed):
    model = build(VARIANCE, seed)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    t = torch.tensor([0, 1, 57, 400, 999])
    x0 = torch.randn(len(t), 2, 8, 8).mul(0.6).clamp(-1, 1)  # some elements lie in the open bins
    noise = torch.randn(x0.shape)
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)[t][:, None, None, None]
    x = (bar.sqrt() * x0 + (1 - bar).sqrt() * noise).float()
    of = lambda dtype, layout: variance_run(model, case, dtype, x.to(memory_format=layout), x0, noise, t)
    runs = list(every_path(model, lambda layout: of(torch.float32, layout)))
    model.time_proj = TimestepsF64(model.config)
    exact, grads = of(torch.float64, torch.contiguous_format)
    zero, weakest = weigh(case, params, grads, exact["loss"].item())
    inputs = {"in/x0": x0, "in/noise": noise, "in/x": x, "in/t": t.float()}
    write(case, seed, model, params, inputs, exact, grads, errors(exact, grads, runs, zero), weakest,
          betas=[1e-4, 0.02, STEPS], weight=WEIGHT)


class Classifier(nn.Module):
    def __init__(self, seed, pool):
        super().__init__()
        self.unet = build(CLASSIFIER, seed)
        c, pixels = CLASSIFIER["block_out_channels"][-1], (CLASSIFIER["sample_size"] // 2) ** 2
        self.pool = None
        if pool == "attention":
            self.pool = nn.Module()
            self.pool.positions = nn.Parameter(torch.randn((1 + pixels) * c) / c**0.5)
            for name in ("to_q", "to_k", "to_v", "to_out"):
                setattr(self.pool, name, nn.Linear(c, c))
        self.conv_norm_out = nn.GroupNorm(CLASSIFIER["norm_num_groups"], c, eps=1e-5)
        self.features, self.logits = nn.Linear(c, FEATURES), nn.Linear(FEATURES, CLASSES)
        with torch.no_grad():
            self.conv_norm_out.weight.copy_(torch.randn(c) * 0.4 + 1)
            self.conv_norm_out.bias.copy_(torch.randn(c) * 0.3)
            layers = [m for m in self.modules() if isinstance(m, nn.Linear)]
            for layer in [m for m in layers if m not in set(self.unet.modules())]:
                layer.weight.copy_(torch.randn(layer.weight.shape) * 1.3 / layer.weight.shape[1] ** 0.5)
                layer.bias.copy_(torch.randn(layer.bias.shape) * 0.3)

    def used(self):
        """The parameters by the names that a classifier without the way up has."""
        up = ("unet.up_blocks", "unet.conv_norm_out", "unet.conv_out")
        return {n.removeprefix("unet."): p for n, p in self.named_parameters() if not n.startswith(up)}

    def forward(self, x, t):
        u = self.unet
        emb = u.time_embedding(u.time_proj(t).to(x.dtype))
        h = u.conv_in(x)
        for block in u.down_blocks:
            h = block(h, emb)[0]
        h = F.silu(self.conv_norm_out(u.mid_block(h, emb)))
        pooled = h.mean(dim=(2, 3))
        if self.pool is not None:
            p, (n, c) = self.pool, pooled.shape
            tokens = torch.cat([pooled[:, None], h.flatten(2).transpose(1, 2)], dim=1) + p.positions.view(1, -1, c)
            q, k, v = p.to_q(tokens[:, :1]), p.to_k(tokens), p.to_v(tokens)
            weights = torch.softmax(q @ k.transpose(1, 2) / c**0.5, dim=-1)
            pooled = p.to_out(weights @ v)[:, 0]
        return self.logits(F.silu(self.features(pooled)))


def classifier_run(model, dtype, x, t, labels):
    model = model.to(dtype)
    model.zero_grad()
    x = x.detach().clone().to(dtype).requires_grad_()
    out = model(x, t.to(dtype))
    loss = F.cross_entropy(out, labels)
    loss.backward()
    grads = {n: p.grad.double().clone() for n, p in model.used().items()}
    return {"out": out.detach().double(), "dx": x.grad.double(), "loss": loss.detach().double().reshape(1)}, grads


def classifier(case, seed):
    model = Classifier(seed, case)
    params = {n: p.detach().clone() for n, p in model.used().items()}
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0, 31, 450, 999])
    labels = torch.tensor([4, 0, 2, 0])
    of = lambda dtype, layout: classifier_run(model, dtype, x.to(memory_format=layout), t, labels)
    runs = list(every_path(model, lambda layout: of(torch.float32, layout)))
    model.unet.time_proj = TimestepsF64(model.unet.config)
    exact, grads = of(torch.float64, torch.contiguous_format)
    zero, weakest = weigh(case, params, grads, exact["loss"].item())
    inputs = {"in/x": x, "in/t": t.float(), "in/labels": labels.to(torch.int32)}
    write(case, seed, model.unet, params, inputs, exact, grads, errors(exact, grads, runs, zero), weakest,
          classifier=dict(classes=CLASSES, features=FEATURES, pool=case))


def write(case, seed, model, params, inputs, exact, grads, about, weakest, **more):
    tensors = {f"param/{n}": p for n, p in params.items()} | inputs
    tensors |= {f"f64/{n}": v for n, v in exact.items()} | {f"f64/grad/{n}": v for n, v in grads.items()}
    save(OUT / f"objective_{case}.safetensors", tensors, config=config_json(model), **about, **more, seed=seed)
    error = about["f32_error"]
    worst = max(error, key=error.get)
    print(f"objective_{case}: {sum(p.numel() for p in params.values())} parameters, {len(grads)} tensors ({len(about['zero_grad'])} of zero "
          f"gradient); loss {exact['loss'].item():.4f}; f32 error: out {error['out']:.1e}, loss {error['loss']:.1e}, "
          f"worst {error[worst]:.1e} ({worst}); {weakest}")


def main():
    for seed, case in enumerate(("hybrid", "bound"), start=601):
        variance(case, seed)
    for seed, case in enumerate(("attention", "mean"), start=611):
        classifier(case, seed)


if __name__ == "__main__":
    main()
