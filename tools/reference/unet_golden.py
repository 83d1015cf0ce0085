"""One U-Net golden: diffusers' own UNet2DModel with seeded weights, its output and every gradient, in f64.

The f64 run takes the f32 values of the parameters and inputs, so it is the exact answer (to 1e-15) to the very
question that an f32 engine is asked.  The f32 run of the same model is PyTorch's own rounding error: the yardstick.

    loss = sum(out * dy)        grad = d loss / d parameter        dx = d loss / d x

One departure from diffusers in the f64 run: diffusers computes the sinusoids of the timestep in f32 always (an error
of 3e-5 in the angle at t = 999); the f64 run here computes them in f64.  The f32 run is untouched.

Tensors (PyTorch layouts: images NCHW, conv OIHW, linear [out, in]):
    param/<name>  f32    in/x  f32    in/t  f32 [N]    in/dy  f32
    in/labels  where the model takes them: i32 [N], or f32 [N, T] with class_embed_type identity
    f64/out   f64/dx   f64/temb (the sinusoids, [N, C0])   f64/grad/<name>, for every parameter            all f64
Metadata, each a JSON text:
    config            the configuration under diffusers' key names (what config.json holds)
    zero_grad         [names] whose exact gradient is zero, or which are not trained (Fourier frequencies); f64/grad holds
                      rounding noise there
    f32_error         {"out", "dx", <name>...}: norm(f32 - f64) / norm(f64), the worst of PyTorch's CPU paths; no entry for
                      the zero_grad names
    f32_error_layer   {<name less .weight or .bias>}: the same over weight and bias as one vector
    seed, loss        for the record
"""
import json
import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from diffusers import UNet2DModel
from diffusers.utils import logging

logging.set_verbosity_error()  # to() warns about modules kept in f32: this model has none

ZERO = 1e-10  # a gradient below this share of the model's largest is exactly zero in real arithmetic
MATTERS = 1e-4  # every other parameter must move the loss at least by this share; see `build`


DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.int32: "I32"}


def save(path, tensors, **metadata):
    """A safetensors file whose bytes depend on nothing but its contents (the library's own order is random).

    8 bytes of header length, the header as JSON padded to a multiple of 8, the tensors: 8-byte types first, by name.
    Metadata values become JSON texts.
    """
    header, blobs, at = {"__metadata__": {k: json.dumps(v) for k, v in sorted(metadata.items())}}, [], 0
    for name, v in sorted(tensors.items(), key=lambda kv: (-kv[1].element_size(), kv[0])):
        blob = v.contiguous().numpy().tobytes()
        header[name] = {"dtype": DTYPES[v.dtype], "shape": list(v.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.writelines(blobs)


def timestep_embedding_f64(t, dim, flip_sin_to_cos, freq_shift):
    """diffusers' get_timestep_embedding, in f64.  t [N] to [N, dim]."""
    half = dim // 2
    f = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / (half - freq_shift))
    a = t.double()[:, None] * f[None, :]
    e = torch.cat([a.cos(), a.sin()] if flip_sin_to_cos else [a.sin(), a.cos()], dim=-1)
    return torch.nn.functional.pad(e, (0, 1)) if dim % 2 else e


class TimestepsF64(torch.nn.Module):
    """Stands in for diffusers' `Timesteps` in the f64 run."""

    def __init__(self, config):
        super().__init__()
        self.args = (config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)

    def forward(self, t):
        return timestep_embedding_f64(t, *self.args)


def config_json(model):
    return json.loads(model.to_json_string())


def build(config, seed):
    """A UNet2DModel whose every part matters.

    Norms are moved away from (1, 0) and weights have variance 1/fan_in (PyTorch's default is a third of that); biases
    are a third of their outputs; queries and keys are a little larger, so that attention is far from a plain mean.
    """
    torch.manual_seed(seed)
    model = UNet2DModel(**config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "time_proj.weight":
                continue  # frequencies N(0, 16^2), or a table N(0, 1)
            if p.ndim == 1:
                is_gain = "norm" in name and name.endswith("weight")
                p.copy_(torch.randn(p.shape) * (0.4 if is_gain else 0.3) + (1.0 if is_gain else 0.0))
            elif "class_embedding" not in name:  # the table keeps its N(0, 1)
                gain = 1.3 if "to_q" in name or "to_k" in name else 1.0
                p.copy_(torch.randn(p.shape) * gain / math.sqrt(p[0].numel()))
    return model


def labels_for(config, batch):
    """Classes of a batch, in the form that the model takes; None where it takes none."""
    if config.class_embed_type == "identity":
        return torch.randn(batch, config.time_embedding_dim or 4 * config.block_out_channels[0])
    if config.class_embed_type == "timestep":
        labels = torch.randint(1, 1000, (batch,))
        return labels.float() if config.time_embedding_type == "fourier" else labels
    if config.num_class_embeds is None:
        return None
    # The last image repeats the first one's class: a row of the table that two images share sums their gradients.
    labels = torch.randint(config.num_class_embeds, (batch,))
    labels[-1] = labels[0]
    return labels


def run(model, dtype, x, t, labels, dy):
    """Output, dx and the gradients by name, all as f64."""
    model = model.to(dtype)
    model.zero_grad()
    x = x.detach().clone().to(dtype).requires_grad_()
    cast = lambda v: v.to(dtype) if v is not None and v.is_floating_point() else v
    out = model(x, cast(t), class_labels=cast(labels)).sample
    (out * dy.to(dtype)).sum().backward()
    # Fourier frequencies are not trained.
    grads = {n: torch.zeros_like(p).double() if p.grad is None else p.grad.double().clone() for n, p in model.named_parameters()}
    return out.detach().double(), x.grad.double(), grads


def f32_runs(model, x, t, labels, dy):
    """PyTorch's f32 answers by every path that it has on a CPU: its own convolutions and oneDNN's, both memory layouts, both
    kinds of attention.  One run alone is right by luck in some tensor of a tiny model; the worst of all is its error."""
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            for attention in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
                with torch.backends.mkldnn.flags(enabled=onednn), sdpa_kernel([attention, SDPBackend.MATH]):
                    model = model.to(memory_format=layout)
                    yield run(model, torch.float32, x.to(memory_format=layout), t, labels, dy)
    model.to(memory_format=torch.contiguous_format)


def relative(a, b):
    """norm(a - b) / norm(b); a list of tensors counts as one vector."""
    a = torch.cat([v.reshape(-1) for v in a]) if isinstance(a, list) else a
    b = torch.cat([v.reshape(-1) for v in b]) if isinstance(b, list) else b
    return ((a - b).norm() / b.norm()).item()


def weigh(name, params, grads, loss, matters=MATTERS):
    """The names of zero gradient; and of the others the one that moves the loss least, with its share of `loss`, in words."""
    norms = {n: v.norm().item() for n, v in grads.items()}
    largest = max(norms.values())
    zero = [n for n in grads if norms[n] <= ZERO * largest]
    doubtful = [n for n in grads if 1e-13 < norms[n] / largest < 1e-7]
    assert not doubtful, f"{name}: zero or not? {doubtful}"
    # Influence: the change of the loss, to first order, if the tensor were turned by its own length.
    influence = {n: norms[n] * params[n].norm().item() / loss for n in grads if n not in zero}
    weakest = min(influence, key=influence.get)
    assert influence[weakest] > matters, f"{name}: {weakest} hardly matters: {influence[weakest]:.1e}"
    return zero, f"weakest {weakest} {influence[weakest]:.1e}"


def errors(exact, grads, runs, zero):
    """The metadata f32_error and f32_error_layer.  `runs`: of each f32 run its tensors, as `exact`, and its gradients."""
    layers = {}
    for n in grads:
        layers.setdefault(n.rsplit(".", 1)[0], []).append(n)
    error = {n: max(relative(r[0][n], v) for r in runs) for n, v in exact.items()}
    error |= {n: max(relative(r[1][n], grads[n]) for r in runs) for n in grads if n not in zero}
    layer = {k: max(relative([r[1][n] for n in ns], [grads[n] for n in ns]) for r in runs)
             for k, ns in layers.items() if any(n not in zero for n in ns)}
    digits = lambda d: {k: float(f"{v:.4g}") for k, v in d.items()}
    return {"zero_grad": zero, "f32_error": digits(error), "f32_error_layer": digits(layer)}


def write(path, config, seed, batch, size, t):
    """Build, run in f32 and in f64, write `path`; returns a line about it.  `size` is (H, W)."""
    model = build(config, seed)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    h, w = size
    x = torch.randn(batch, model.config.in_channels, h, w)
    dy = torch.randn(batch, model.config.out_channels, h, w)
    # A learned table is picked from by whole numbers.
    t = torch.tensor(t, dtype=torch.long if model.config.time_embedding_type == "learned" else torch.float32)
    assert t.shape == (batch,)
    labels = labels_for(model.config, batch)

    runs = list(f32_runs(model, x, t, labels, dy))
    if model.config.time_embedding_type == "positional":
        model.time_proj = TimestepsF64(model.config)
    out, dx, g = run(model, torch.float64, x, t, labels, dy)

    zero, weakest = weigh(path, params, g, out.norm().item() * dy.double().norm().item())
    about = errors({"out": out, "dx": dx}, g, [({"out": r[0], "dx": r[1]}, r[2]) for r in runs], zero)
    error = about["f32_error"]

    tensors = {f"param/{n}": p for n, p in params.items()}
    tensors |= {"in/x": x, "in/t": t.float(), "in/dy": dy}
    if labels is not None:
        tensors["in/labels"] = labels if labels.is_floating_point() else labels.to(torch.int32)
    with torch.no_grad():
        temb = model.time_proj(t.double() if t.is_floating_point() else t)
    tensors |= {"f64/out": out, "f64/dx": dx, "f64/temb": temb}
    tensors |= {f"f64/grad/{n}": v for n, v in g.items()}
    save(path, tensors, config=config_json(model), **about, seed=seed, loss=(out * dy.double()).sum().item())
    count = sum(p.numel() for p in params.values())
    worst = max(error, key=error.get)
    return (f"{count} parameters, {len(g)} tensors ({len(zero)} of zero gradient); "
            f"f32 error: out {error['out']:.1e}, dx {error['dx']:.1e}, worst {error[worst]:.1e} ({worst}); "
            f"{weakest}")
