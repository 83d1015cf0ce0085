"""Whether denoir computes what PyTorch computes: the same weights and inputs in, output, loss and every gradient out.

    python tools/compare/torch_check.py give mnist-unet FOLDER                writes FOLDER/given.safetensors
    denoir bench check mnist-unet --given FOLDER/given.safetensors --out FOLDER/out.safetensors
    python tools/compare/torch_check.py judge mnist-unet FOLDER [--factor 2]  one JSON line, exit status 1 if it differs
    python tools/compare/torch_check.py self-test                             a wrong answer is found

The exact answer is PyTorch's in f64, for the f32 values of weights and inputs.  The error of a tensor is
norm(difference) / norm(exact); denoir's may be at most `factor` times PyTorch's own in f32 (the worst of oneDNN and its own
convolutions, in both memory layouts), or 1e-5.  A gradient that is exactly zero in real arithmetic (a bias that a norm
cancels) may be at most 1e-5 of the largest gradient.  `denoir bench check --help` gives the format of the files.
"""
import argparse
import ctypes
import json
import math
import struct
import sys
from pathlib import Path

import torch
import torch.nn as nn

import torch_models as models

ENOUGH = 1e-5  # an error that is rounding in any case
ZERO = 1e-10  # a gradient below this share of the largest is zero in real arithmetic
REACH = 0.05  # how far a bias may be moved to keep a layer's values away from the kink of their ReLU


# -------------------------------------------------------------------------------------------------- safetensors files
def write(path, tensors):
    header, at = {}, 0
    for name, v in tensors.items():
        header[name] = dict(dtype="F32", shape=list(v.shape), data_offsets=[at, at + 4 * v.numel()])
        at += 4 * v.numel()
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for v in tensors.values():
            v = v.detach().float().contiguous()
            f.write(ctypes.string_at(v.data_ptr(), 4 * v.numel()))


def read(path):
    data = Path(path).read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    tensors = {}
    for name, v in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            assert v["dtype"] == "F32", f"{path}: {name} is {v['dtype']}"
            begin, end = (8 + size + at for at in v["data_offsets"])
            tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(v["shape"])
    return tensors


# --------------------------------------------------------------------------------------------------- the exact answer
def build(name, batch, seed):
    """A model whose every part matters, and its inputs (x, second argument, target).

    Norms are moved away from (1, 0), weights have variance 1/fan_in, biases are a third of their outputs, queries and keys
    a little larger, so that attention is far from a plain mean.
    """
    torch.manual_seed(seed)
    model = models.build(name).eval()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for parameter, p in model.named_parameters():
            layer = modules[parameter.rsplit(".", 1)[0]]
            if isinstance(layer, nn.GroupNorm):
                p.copy_(torch.randn(p.shape) * 0.4 + 1.0 if parameter.endswith("weight") else torch.randn(p.shape) * 0.3)
            elif p.ndim == 1:
                p.copy_(torch.randn(p.shape) * 0.3)
            else:
                # Two of four taps along each axis of a transposed convolution of stride 2 meet an output.
                fan_in = p.shape[0] * 4 if isinstance(layer, nn.ConvTranspose2d) else p[0].numel()
                gain = 1.3 if "to_q" in parameter or "to_k" in parameter else 1.0
                p.copy_(torch.randn(p.shape) * gain / math.sqrt(fan_in))
        if isinstance(model, models.Vae):
            list(model.encoder)[-1].weight.mul_(0.7)  # variances of the latent not far from 1
    x, second = models.inputs(model, batch)
    if isinstance(model, models.Vae):
        keep_off_kinks(model, x, second)
        return model, (x, second, x)
    second = torch.linspace(1, 998, batch).round()
    return model, (x, second, torch.randn_like(x))


def keep_off_kinks(model, x, eps):
    """Moves biases, channel by channel, to where the values before a ReLU stay farthest from zero.  Within rounding of zero
    an engine may take the other side, and gradients are off by far more than rounding; among millions of values there
    always is such a one."""
    def away(values):
        kinks = -values[values.abs() <= 2 * REACH].sort().values
        if len(kinks) == 0:
            return values.new_tensor(0.0)
        between = (kinks[1:] + kinks[:-1]) / 2
        shifts = torch.cat([between[between.abs() <= REACH], values.new_tensor([0.0, -REACH, REACH])])
        return shifts[(shifts[:, None] - kinks).abs().min(1).values.argmax()]

    def move(relu, args):
        values = args[0]
        shift = torch.stack([away(channel) for channel in values.movedim(1, 0).flatten(1)])
        relu.layer[0].bias += shift
        return (values + shift.reshape(-1, *[1] * (values.ndim - 2)),)

    model.double()
    hooks = [m.register_forward_pre_hook(move) for m in model.modules() if isinstance(m, models.Relu)]
    with torch.no_grad():
        model(x.double(), eps.double())
    for hook in hooks:
        hook.remove()
    model.float()


def run(model, given, dtype):
    """`out`, `loss` and `grad/NAME`, as f64."""
    model = model.to(dtype)
    model.zero_grad()
    x, second, target = (v.to(dtype) for v in given)
    out = model(x, second)
    loss = models.loss_of(model, out, target)
    loss.backward()
    answer = dict(out=out[0] if isinstance(out, tuple) else out, loss=loss.reshape(1))
    answer |= {f"grad/{n}": p.grad for n, p in model.named_parameters()}
    return {n: v.detach().double().contiguous().clone() for n, v in answer.items()}


def f32_runs(model, given):
    """PyTorch's f32 answers by its own convolutions and oneDNN's, in both layouts."""
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            with torch.backends.mkldnn.flags(enabled=onednn):
                model = model.float().to(memory_format=layout)
                yield run(model, [v.to(memory_format=layout) if v.ndim == 4 else v for v in given], torch.float32)
    model.to(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------------------------------------------------- judgement
def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def judge(exact, runs, ours, factor):
    """What differs, and the worst of what does not.  `ours` may lack tensors or have shapes of its own: both are faults."""
    largest = max(v.norm().item() for n, v in exact.items() if n.startswith("grad/"))
    faults, worst = [], dict(name=None, error=0.0, pytorch=0.0, share=0.0)
    for name, want in exact.items():
        got = ours.get(name)
        if got is None:
            faults.append(f"{name} is missing")
        elif got.numel() != want.numel():
            faults.append(f"{name} is {list(got.shape)} instead of {list(want.shape)}")
        elif name.startswith("grad/") and want.norm().item() <= ZERO * largest:
            if not got.double().norm().item() <= ENOUGH * largest:  # NaN too
                faults.append(f"{name} is {got.norm().item():.1e} and should be 0")
        else:
            error = relative(got.reshape(want.shape), want)
            theirs = max(relative(r[name], want) for r in runs)
            limit = max(factor * theirs, ENOUGH)
            if not error <= limit:
                faults.append(f"{name} is off by {error:.1e}, PyTorch in f32 by {theirs:.1e}")
            elif error / limit >= worst["share"]:
                worst = dict(name=name, error=error, pytorch=theirs, share=error / limit)
    faults += [f"{name} is not expected" for name in ours if name not in exact]
    return faults, worst


def self_test():
    model, given = build("mlp-vae", 3, 0)
    exact, runs = run(model, given, torch.float64), list(f32_runs(model, given))
    right = {n: v.float() for n, v in exact.items()}
    assert judge(exact, runs, right, 2.0)[0] == []

    def found(change, what):
        wrong = {n: v.clone() for n, v in right.items()}
        change(wrong)
        faults, _ = judge(exact, runs, wrong, 2.0)
        assert len(faults) == 1 and what in faults[0], (what, faults)

    name = "grad/decoder.0.weight"
    found(lambda w: w[name].mul_(1.001), f"{name} is off by 1.0e-03")
    found(lambda w: w[name].copy_(torch.roll(w[name], 1)), f"{name} is off by")
    found(lambda w: w["out"][0].fill_(float("nan")), "out is off by nan")
    found(lambda w: w["loss"].mul_(1.0001), "loss is off by")
    found(lambda w: w.pop(name), f"{name} is missing")
    found(lambda w: w.update(extra=w[name]), "extra is not expected")
    print("torch_check: passed")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["give", "judge", "self-test"])
    p.add_argument("workload", nargs="?", choices=models.WORKLOADS)
    p.add_argument("folder", nargs="?", type=Path)
    p.add_argument("--factor", type=float, default=2.0)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    if a.what == "self-test":
        return self_test()
    if a.folder is None:
        p.error(f"{a.what} takes a workload and a folder")
    given_file = a.folder / "given.safetensors"
    if a.what == "give":
        model, (x, second, target) = build(a.workload, a.batch, a.seed)
        tensors = {n: v for n, v in model.named_parameters()} | {"in/x": x}
        if isinstance(model, models.Vae):
            tensors |= {"in/eps": second}
        else:
            tensors |= {"in/target": target} | ({} if a.workload == "arena-unet" else {"in/t": second})
        return write(given_file, tensors)

    # The weights and inputs that denoir was given, not new ones from the same seed.
    tensors, model = read(given_file), models.build(a.workload).eval()
    x = tensors.pop("in/x")
    second = tensors.pop("in/eps" if isinstance(model, models.Vae) else "in/t", torch.zeros(len(x)))
    given = (x, second, tensors.pop("in/target", x))
    model.load_state_dict(tensors)
    runs = list(f32_runs(model, given))
    faults, worst = judge(run(model, given, torch.float64), runs, read(a.folder / "out.safetensors"), a.factor)
    print(json.dumps(dict(workload=a.workload, passed=not faults, tensors=len(tensors) + 2, faults=faults[:5],
                          more=max(0, len(faults) - 5), worst=worst, factor=a.factor, batch=len(x))))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
