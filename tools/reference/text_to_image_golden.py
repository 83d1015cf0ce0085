"""UNet2DConditionModel in its variants, with the gradients of all its parameters: tests/golden/text_unet.safetensors.

    python text_to_image_golden.py

The weights are not in the file.  Those of a case are what the library draws with torch.manual_seed(0) and the `config` of
the case; then all of them are doubled (which is exact), and some, `given`, are overwritten: those with "norm" in their
name, and class_embedding.weight with num_class_embeds.  The f64 run takes these f32 values; the sinusoids of the timesteps
are made in f64 there (unet_golden.py, which also says what the f32 errors are).

Everything with one part for each parameter has them sorted by name, byte by byte.

Metadata `cases`, by case:
    config       the library's configuration: the keys that are not its defaults
    tensors, parameters   their numbers; of the first case `tensors` is [[name, shape], ...]
    whole        whether `<case>/grad` holds all gradients, or of each tensor five numbers
    zero_grad    names of the tensors whose exact gradient is zero, where there are any
    f32_error    {"out", "dx", "dtext"}: norm(f32 - f64) / norm(f64), the worst of PyTorch's CPU paths
    loss         sum(out * dy), for the record
Tensors, F32 (out, dx, dtext and grad are f64 answers, rounded once):
    <case>/x [N,C,H,W]   t [N]   text [N,L,D]   dy   labels (i32 [N], f32 [N] with class_embed_type timestep, else f32 [N,W])
    <case>/drawn [n,2]   the first and the last element of every tensor as drawn, before it is doubled
    <case>/given         flat
    <case>/out   dx   dtext
    <case>/grad          whole: all gradients of sum(out * dy), flat;
                         else [n,5]: sum, sum of absolute values, first, middle (index elements // 2), last element
    <case>/grad_error    [n]: the f32 error of each gradient, as f32_error; 0 for those of zero_grad
"""
import inspect
import pathlib

import torch
from diffusers import UNet2DConditionModel

import unet_golden
from unet_golden import TimestepsF64, config_json, relative, save, weigh

MATTERS = 2e-5  # a fifth of unet_golden.py's
OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"

BASE = dict(block_out_channels=(8, 12), layers_per_block=1, sample_size=8, norm_num_groups=4, cross_attention_dim=6,
            attention_head_dim=(2, 4), use_linear_projection=True,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
BOTH = dict(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)
CASES = {
    "base": dict(),
    # Projections of one pixel: another shape, the same answers but for the order of sums.
    "conv": dict(config=dict(use_linear_projection=False), whole=False),
    # Every level attends, with other numbers of heads and other depths.
    "lists": dict(config=dict(**BOTH, attention_head_dim=(1, 4), cross_attention_dim=(6, 6), transformer_layers_per_block=(2, 1),
                              layers_per_block=(2, 1), only_cross_attention=(False, True)), whole=False),
    "depths": dict(config=dict(**BOTH, transformer_layers_per_block=(1, 2), attention_head_dim=4), whole=False),
    "layers": dict(config=dict(**BOTH, layers_per_block=(1, 2)), whole=False),
    "heads": dict(config=dict(attention_head_dim=4, use_linear_projection=False), whole=False),
    "only_cross": dict(config=dict(only_cross_attention=True), whole=False),
    "two_layers": dict(config=dict(transformer_layers_per_block=2), whole=False),
    "table": dict(config=dict(num_class_embeds=5), labels=torch.tensor([3, 1]), whole=False),
    "class_timestep": dict(config=dict(class_embed_type="timestep"), labels=torch.tensor([20.0, 31.0]), whole=False),
    "class_projection": dict(config=dict(class_embed_type="projection", projection_class_embeddings_input_dim=3), labels=3,
                             whole=False),
    "class_simple": dict(config=dict(class_embed_type="simple_projection", projection_class_embeddings_input_dim=3), labels=3,
                         whole=False),
    "class_identity": dict(config=dict(class_embed_type="identity"), labels=32, whole=False),
    "text_proj": dict(config=dict(encoder_hid_dim=7), text=7),
    "scale_shift": dict(config=dict(resnet_time_scale_shift="scale_shift"), whole=False),
    "plain_mid": dict(config=dict(mid_block_type="UNetMidBlock2D"), whole=False),
    "no_mid": dict(config=dict(mid_block_type=None), whole=False),
    # Not of a multiple of two: the way up follows the sizes of the way down.
    "odd": dict(config=dict(**BOTH, in_channels=9), size=(9, 7), whole=False),
    # Three levels, one image, the defaults' sin and cos swapped, another epsilon and another activation.
    "three": dict(config=dict(block_out_channels=(8, 12, 16), attention_head_dim=(2, 3, 4), flip_sin_to_cos=False, freq_shift=1,
                              norm_eps=1e-3, act_fn="gelu", out_channels=2,
                              down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                              up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
                  size=(5, 6), t=[250.0], whole=False),
}


def run(model, dtype, x, t, labels, dy, text):
    """Output, dx, dtext and the gradients by name, all as f64."""
    model = model.to(dtype)
    model.zero_grad()
    x, text = (v.detach().clone().to(dtype).requires_grad_() for v in (x, text))
    cast = lambda v: v.to(dtype) if v is not None and v.is_floating_point() else v
    out = model(x, cast(t), text, class_labels=cast(labels)).sample
    (out * dy.to(dtype)).sum().backward()
    return out.detach().double(), x.grad.double(), text.grad.double(), {n: p.grad.double().clone() for n, p in sorted(model.named_parameters())}


def f32_runs(model, x, t, labels, dy, text):
    """As unet_golden's, whose `run` this gives the text."""
    own = unet_golden.run
    unet_golden.run = lambda model, dtype, x, t, labels, dy: run(model, dtype, x, t, labels, dy, text)
    try:
        yield from unet_golden.f32_runs(model, x, t, labels, dy)
    finally:
        unet_golden.run = own


def build(config, generator):
    """The model, what was drawn, and the names of the tensors that are given."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(**config)
    drawn = {n: p.detach().clone() for n, p in sorted(model.named_parameters())}
    given = [n for n in drawn if "norm" in n or n == "class_embedding.weight" and "num_class_embeds" in config]
    with torch.no_grad():
        for n, p in sorted(model.named_parameters()):
            if n in given:
                z = torch.randn(p.shape, generator=generator)
                p.copy_(z if "norm" not in n else 1 + 0.4 * z if n.endswith("weight") else 0.3 * z)
            else:
                p.mul_(2)
    return model, drawn, given


def changed(model):
    config, defaults = config_json(model), inspect.signature(UNet2DConditionModel).parameters
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    return {k: v for k, v in config.items() if k == "_class_name" or k in defaults and v != plain(defaults[k].default)}


def case(name, config=None, size=(8, 8), t=(3.0, 60.0), labels=None, text=6, whole=True):
    generator = torch.Generator().manual_seed(500)
    randn = lambda *shape: torch.randn(shape, generator=generator)
    model, drawn, given = build(BASE | (config or {}), generator)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    t = torch.tensor(t)
    x = randn(len(t), model.config.in_channels, *size)
    dy = randn(len(t), model.config.out_channels, *size)
    if isinstance(labels, int):
        labels = randn(len(t), labels)
    text = randn(len(t), 5, text)

    runs = list(f32_runs(model, x, t, labels, dy, text))
    model.time_proj = TimestepsF64(model.config)
    out, dx, dtext, g = run(model, torch.float64, x, t, labels, dy, text)
    zero, weakest = weigh(name, params, g, out.norm().item() * dy.double().norm().item(), MATTERS)
    digits = lambda v: float(f"{v:.3g}")
    worst = lambda i, v: digits(max(relative(r[i], v) for r in runs))
    grad_error = [0.0 if n in zero else digits(max(relative(r[3][n], g[n]) for r in runs)) for n in g]

    flat = lambda tensors: torch.cat([v.flatten() for v in tensors])
    five = lambda v: torch.stack([v.sum(), v.abs().sum(), v[0], v[v.numel() // 2], v[-1]])
    f32 = lambda v: v.float()
    tensors = dict(x=x, t=t, text=text, dy=dy, out=f32(out), dx=f32(dx), dtext=f32(dtext), given=flat(params[n] for n in given),
                   drawn=torch.stack([v.flatten()[[0, -1]] for v in drawn.values()]),
                   grad_error=torch.tensor(grad_error),
                   grad=f32(flat(g.values())) if whole else f32(torch.stack([five(v.flatten()) for v in g.values()])))
    if labels is not None:
        tensors["labels"] = labels if labels.is_floating_point() else labels.to(torch.int32)
    about = dict(config=changed(model), tensors=[[n, list(p.shape)] for n, p in sorted(params.items())] if name == "base" else len(g),
                 parameters=sum(p.numel() for p in params.values()), whole=whole,
                 zero_grad=zero, f32_error=dict(out=worst(0, out), dx=worst(1, dx), dtext=worst(2, dtext)),
                 loss=(out * dy.double()).sum().item())
    print(f"{name}: {sum(p.numel() for p in params.values())} parameters, {len(g)} tensors, {len(zero)} of zero gradient; f32 error "
          f"{about['f32_error']}, worst gradient {max(grad_error):.1e}; {weakest}")
    return {f"{name}/{k}": v for k, v in tensors.items()}, about


def main():
    tensors, cases = {}, {}
    for name, arguments in CASES.items():
        more, about = case(name, **arguments)
        tensors |= more
        cases[name] = about
    path = OUT / "text_unet.safetensors"
    save(path, tensors, cases=cases)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    main()
