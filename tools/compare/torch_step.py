"""Times a training step and a sampling step of a workload in PyTorch; prints one JSON line.

    python tools/compare/torch_step.py mnist-unet --device cpu|cuda|mps [--batch N] [--steps N] [--threads N]
        [--fused] [--channels-last] [--compile] [--amp] [--tf32] [--no-clip]

A training step is noise, timestep, noised image, forward, loss, backward, clipping to a global norm of 1, Adam, EMA - what a
step of denoir is.  A sampling step is a forward without gradients and the update of the DDPM sampler; of a VAE, the decoder.

peak_memory_bytes: on a CPU the peak resident memory up to the end of training, less what was resident after the import of
PyTorch; on CUDA the most that its tensors held at one time.
"""
import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import time

import torch

import torch_models as models

IMPORTED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("workload", choices=models.WORKLOADS)
    p.add_argument("--device", default="cpu")
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--warmup", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--fused", action="store_true", help="Adam in one kernel")
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--amp", action="store_true", help="autocast to bf16")
    p.add_argument("--tf32", action="store_true", help="CUDA: let products of f32 be computed with 10 bits of mantissa")
    p.add_argument("--no-clip", action="store_true", help="leave the gradients as they are")
    return p.parse_args()


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.tf32
    torch.manual_seed(0)
    device, cuda = torch.device(a.device), a.device.startswith("cuda")
    layout = torch.channels_last if a.channels_last else torch.contiguous_format

    model = models.build(a.workload).to(device).train()
    vae = isinstance(model, models.Vae)
    place = lambda x: x.to(memory_format=layout) if x.dim() == 4 else x
    model = model.to(memory_format=layout)
    x0, extra = models.inputs(model, a.batch, device)
    x0 = place(x0)
    parameters = list(model.parameters())
    ema = [p.detach().clone() for p in parameters]
    adam = torch.optim.Adam(parameters, lr=1e-4, **(dict(fused=True) if a.fused else {}))
    forward = torch.compile(model) if a.compile else model
    decode = None if not vae else torch.compile(model.decoder) if a.compile else model.decoder
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, 0)
    alpha_bar_of = alpha_bar.float().to(device)

    def cast():
        return torch.autocast(device.type, dtype=torch.bfloat16) if a.amp else contextlib.nullcontext()

    def wait():
        if cuda:
            torch.cuda.synchronize()
        elif a.device == "mps":
            torch.mps.synchronize()

    def floats(out):
        return tuple(map(floats, out)) if isinstance(out, tuple) else out.float()

    def train():
        if vae:
            x, second, target = x0, torch.randn_like(extra), x0
        else:
            second, target = torch.randint(0, 1000, (a.batch,), device=device), torch.randn_like(x0)
            ab = alpha_bar_of[second][:, None, None, None]
            x = ab.sqrt() * x0 + (1 - ab).sqrt() * target
        with cast():
            out = forward(x, second)
        loss = models.loss_of(model, floats(out), target)
        loss.backward()
        if not a.no_clip:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, parameters, 1e-4)
        return loss

    def sample():
        with torch.no_grad(), cast():
            if vae:
                return decode(extra)
            # x_{t-1} = (x - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + sqrt(beta) z at t = 500
            b, ab = beta[500].item(), alpha_bar[500].item()
            eps = forward(x0, torch.full((a.batch,), 500, device=device)).float()
            return (x0 - b / (1 - ab) ** 0.5 * eps) / (1 - b) ** 0.5 + b**0.5 * torch.randn_like(x0)

    def timed(step):
        times = []
        for i in range(a.warmup + a.steps):
            wait()
            start = time.perf_counter()
            step()
            wait()
            times.append((time.perf_counter() - start) * 1e3)
        times = times[a.warmup :]
        return dict(median_ms=statistics.median(times), min_ms=min(times), max_ms=max(times), n=len(times))

    first = train().item()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trained = timed(train)
    last = train().item()
    assert last == last and abs(last) < float("inf"), f"the loss is {last}"
    memory = (torch.cuda.max_memory_allocated() if cuda else
              None if a.device == "mps" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - IMPORTED)
    model.eval()
    sampled = timed(sample)
    print(json.dumps(dict(
        workload=a.workload, device=torch.cuda.get_device_name() if cuda else a.device, threads=torch.get_num_threads(),
        batch=a.batch, parameters=sum(p.numel() for p in parameters), step=trained, sample=sampled, peak_memory_bytes=memory,
        resident_after_import_bytes=IMPORTED, loss_first=first, loss_last=last, clip=not a.no_clip,
        version=torch.__version__, python=platform.python_version())))


if __name__ == "__main__":
    main()
