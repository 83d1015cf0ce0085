"""Write every golden under tests/golden/ from PyTorch and diffusers.  One command, from the repository's root:

    python -m venv /tmp/venv && /tmp/venv/bin/pip install -r tools/reference/requirements.txt
    /tmp/venv/bin/python tools/reference/make_goldens.py

Versions: torch 2.15.0, diffusers 0.42.1, numpy 2.4.6, safetensors 0.8.0, Python 3.11; CPU, two threads; half a minute.
On one machine two runs write the same bytes; on another the F64 results move by about 1e-15.

In every safetensors file a tensor of dtype F32 (or I32) is an input, exact as stored, and a tensor of dtype F64 is an
answer computed in f64 from exactly those inputs.  Metadata values are JSON texts.  README.md lists the tensors.
"""
import json
import math
import pathlib
from decimal import Decimal, getcontext

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.optimization import get_scheduler
from diffusers.schedulers import scheduling_ddpm
from diffusers.training_utils import EMAModel
from safetensors import safe_open

import configs
import folders
import formats
import unconditional_golden
import unet_golden
import vae_golden

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"


# --------------------------------------------------------------------------------------------------------- U-Nets
def unets():
    for seed, (name, c) in enumerate(configs.CASES.items(), start=100):
        line = unet_golden.write(GOLDEN / f"unet_{name}.safetensors", c["config"], seed, len(c["t"]), c["hw"], c["t"])
        print(f"unet_{name}: {line}")


def unet_names():
    """unet_names.json: {model: {"config", "parameters", "tensors": [[name, shape], ...]}}.

    Where two models have the same tensors, "tensors" of the later one is the earlier one's name.
    Tensors stand in the order of PyTorch's state_dict.
    """
    book, seen = {}, {}
    for name, known in configs.COUNTS.items():
        with torch.device("meta"):  # shapes without storage
            model = UNet2DModel(**configs.KNOWN[name])
        tensors = [[n, list(p.shape)] for n, p in model.state_dict().items()]
        count = sum(math.prod(shape) for _, shape in tensors)
        assert count == (known or count), (name, count)
        key = json.dumps(tensors)
        config = unet_golden.config_json(model)
        book[name] = {"config": config, "parameters": count, "tensors": seen.get(key, tensors)}
        seen.setdefault(key, name)
        print(f"names of {name}: {len(tensors)} tensors, {count:,} parameters")
    write_book("unet_names.json", book)


def write_book(name, book):
    text = json.dumps(book, separators=(",", ":")).replace('],["', '],\n["').replace('},"', '},\n"')
    assert json.loads(text) == book
    (GOLDEN / name).write_text(text + "\n")


# ----------------------------------------------------------------------------------------------------------- VAEs
def vaes():
    for seed, (name, c) in enumerate(configs.VAE_CASES.items(), start=200):
        path = GOLDEN / f"vae_{name}.safetensors"
        line = vae_golden.write(path, c["config"], c["loss"], seed, c["batch"], c["size"])
        print(f"vae_{name}: {line}")


def vae_names():
    """vae_names.json: {model: {"config", "image_size", "parameters", "tensors": [[name, shape], ...]}}."""
    book = {}
    for name, c in configs.KNOWN_VAES.items():
        with torch.device("meta"):
            model = vae_golden.model_of(c["config"], c["size"])
        tensors = [[n, list(p.shape)] for n, p in model.state_dict().items()]
        count = sum(math.prod(shape) for _, shape in tensors)
        assert count == configs.VAE_COUNTS[name], (name, count)
        book[name] = {"config": c["config"], "image_size": c["size"], "parameters": count, "tensors": tensors}
        print(f"names of {name}: {len(tensors)} tensors, {count:,} parameters")
    write_book("vae_names.json", book)


# ------------------------------------------------------------------------------------------------------ optimisers
N_PARAM, N_STEP = 401, 5
OPTIM = {  # name: class, its arguments, the learning-rate schedule
    "adam": (torch.optim.Adam, dict(lr=1e-3, betas=(0.9, 0.999)), "constant"),
    "adam_cosine": (torch.optim.Adam, dict(lr=1e-3, betas=(0.95, 0.999)), "cosine"),
    "adamw": (torch.optim.AdamW, dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2), "constant"),
    "adamw_cosine": (torch.optim.AdamW, dict(lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-2), "cosine"),
}
EMA = {"ema_warmup": dict(decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75),
       "ema_plain": dict(decay=0.9999, use_ema_warmup=False)}


def optimise(kind, kwargs, schedule, start, grads):
    """Five steps of clip(1.0), optimiser, EMA, schedule, as diffusers' training example orders them."""
    p = torch.nn.Parameter(start.double())
    opt = kind([p], eps=1e-8, **kwargs)
    lr = get_scheduler(schedule, opt, num_warmup_steps=2, num_training_steps=N_STEP)
    emas = {k: EMAModel([p], **v) for k, v in EMA.items()}
    rows = {k: [] for k in ["lr", "norm", "param", "m", "v", *EMA, *(f"{k}_decay" for k in EMA)]}
    for g in grads:
        p.grad = g.double().clone()
        rows["norm"].append(torch.nn.utils.clip_grad_norm_([p], 1.0))
        rows["lr"].append(torch.tensor(lr.get_last_lr()[0], dtype=torch.float64))
        opt.step()
        lr.step()
        state = opt.state[p]
        rows["param"].append(p.detach().clone())
        rows["m"].append(state["exp_avg"].clone())
        rows["v"].append(state["exp_avg_sq"].clone())
        for k, ema in emas.items():
            ema.step([p])
            rows[k].append(ema.shadow_params[0].clone())
            rows[f"{k}_decay"].append(torch.tensor(ema.cur_decay_value, dtype=torch.float64))
    return {k: torch.stack(v) for k, v in rows.items()}


def optim():
    torch.manual_seed(1)
    start = torch.randn(N_PARAM)
    # Norms on both sides of 1; two entries with no gradient ever and one with hardly any (eps matters there).
    grads = torch.randn(N_STEP, N_PARAM)
    grads *= torch.tensor([0.3, 5.0, 0.9, 40.0, 0.01])[:, None] / grads.norm(dim=1, keepdim=True)
    grads[:, :2] = 0.0
    grads[:, 2] *= 1e-7
    out = {"in/param": start, "in/grad": grads}
    info = {}
    for name, (kind, kwargs, schedule) in OPTIM.items():
        out |= {f"{name}/{k}": v for k, v in optimise(kind, kwargs, schedule, start, grads).items()}
        info[name] = dict(optimizer=kind.__name__, eps=1e-8, weight_decay=0.0, max_norm=1.0, schedule=schedule,
                          warmup=2, total=N_STEP) | kwargs
    # AdamW without decay is Adam: no tensors of its own.
    kind, kwargs, schedule = OPTIM["adam"]
    undecayed = optimise(torch.optim.AdamW, kwargs | dict(weight_decay=0.0), schedule, start, grads)
    assert all(torch.equal(v, out[f"adam/{k}"]) for k, v in undecayed.items())

    steps = [*range(1, 51), 1000, 100_000]
    out["ema/step"] = torch.tensor(steps, dtype=torch.int32)
    for k, v in EMA.items():
        model = EMAModel([torch.zeros(1)], **v)
        out[f"ema/{k}_decay"] = torch.tensor([model.get_decay(s) for s in steps], dtype=torch.float64)
    for name, warmup in [("constant", 0), ("constant_with_warmup", 5), ("cosine", 5), ("cosine", 0)]:
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
        lr = get_scheduler(name, opt, num_warmup_steps=warmup, num_training_steps=30)
        rows = []
        for _ in range(30):
            rows.append(lr.get_last_lr()[0])
            opt.step()
            lr.step()
        out[f"lr/{name}_{warmup}"] = torch.tensor(rows, dtype=torch.float64)
    unet_golden.save(GOLDEN / "optim.safetensors", out, cases=info, ema=EMA, lr=dict(base=1e-4, total=30))


# -------------------------------------------------------------------------------------------------------- schedule
getcontext().prec = 60  # so that every table below is the correctly rounded f64 value
T = 1000
PAIRS = [(999, 998), (500, 499), (100, 99), (2, 1), (1, 0), (0, -1),
         (900, 800), (500, 400), (100, 0), (980, 960), (20, 0)]
# Computed by another program from diffusers' formulas: coefficient of x0, of x_t, std small, std large.
KNOWN_ROWS = {
    (999, 998): (1.28351487e-4, 0.989948678, 0.141421298, 0.141421356),
    (500, 499): (3.05805708e-3, 0.994104351, 0.10025635, 0.100299352),
    (1, 0): (0.5452915, 0.454708499, 0.00738457017, 0.0109507954),
    (900, 800): (0.0318751668, 0.422872003, 0.905383937, 0.905944714),
    (100, 0): (0.999096289, 9.02327762e-4, 0.00999573033, 0.323680222),
}


def tables():
    """The linear schedule to 60 digits: beta_i = 1e-4 + (2e-2 - 1e-4) i / 999, abar_i = prod (1 - beta)."""
    b0, b1 = Decimal("0.0001"), Decimal("0.02")
    beta = [b0 + (b1 - b0) * i / (T - 1) for i in range(T)]
    abar, a = [], Decimal(1)
    for b in beta:
        a *= 1 - b
        abar.append(a)
    return beta, abar


def posterior(abar, t, prev):
    """q(x_prev | x_t, x0): coefficients of x0 and x_t, standard deviations small and large (Ho 2020, equation 7)."""
    a, a_prev = abar[t], abar[prev] if prev >= 0 else Decimal(1)
    alpha = a / a_prev
    small = (1 - a_prev) / (1 - a) * (1 - alpha)
    c0 = a_prev.sqrt() * (1 - alpha) / (1 - a)
    ct = alpha.sqrt() * (1 - a_prev) / (1 - a)
    # The last step draws no noise, whatever the variance.
    return (c0, ct, small.sqrt(), (1 - alpha).sqrt()) if t > 0 else (c0, ct, Decimal(0), Decimal(0))


def model(x, t):
    return x * (t / (t + 1))


def reverse(abar, steps, x, noise, large, clip):
    """Ancestral sampling in f64; returns x after every step [n, ...] and the (clipped) x0 estimates [n, ...]."""
    xs, x0s = [], []
    for i, t in enumerate(steps):
        prev = steps[i + 1] if i + 1 < len(steps) else -1
        c0, ct, small_std, large_std = (float(v) for v in posterior(abar, t, prev))
        x0 = (x - float((1 - abar[t]).sqrt()) * model(x, t)) / float(abar[t].sqrt())
        x0 = x0.clamp(-1, 1) if clip else x0
        x = c0 * x0 + ct * x + (large_std if large else small_std) * noise[i]
        xs.append(x)
        x0s.append(x0)
    return torch.stack(xs), torch.stack(x0s)


def reverse_diffusers(steps, x, noise, large, clip):
    """The same by DDPMScheduler, in f32, with its noise replaced by ours."""
    s = DDPMScheduler(variance_type="fixed_large" if large else "fixed_small", clip_sample=clip)
    s.set_timesteps(len(steps))
    assert s.timesteps.tolist() == steps
    drawn = scheduling_ddpm.randn_tensor
    try:
        for i, t in enumerate(steps):
            scheduling_ddpm.randn_tensor = lambda *args, **kwargs: noise[i]
            x = s.step(model(x, t), t, x).prev_sample
    finally:
        scheduling_ddpm.randn_tensor = drawn
    return x


def schedule():
    f64 = lambda values: torch.tensor([float(v) for v in values], dtype=torch.float64)
    beta, abar = tables()
    reference = DDPMScheduler()
    assert np.allclose(reference.betas, f64(beta), rtol=1e-6)
    assert np.allclose(reference.alphas_cumprod, f64(abar), rtol=1e-5)
    out = {"betas": f64(beta), "alphas_cumprod": f64(abar)}
    for n in (10, 50, 1000):
        reference.set_timesteps(n)
        out[f"timesteps/{n}"] = reference.timesteps.to(torch.int32)

    rows = [posterior(abar, t, prev) for t, prev in PAIRS]
    for pair, row in zip(PAIRS, rows):
        assert np.allclose(np.array(row, float), KNOWN_ROWS.get(pair, np.array(row, float)), rtol=1e-8), (pair, row)
    out["posterior/t"] = torch.tensor([t for t, _ in PAIRS], dtype=torch.int32)
    out["posterior/prev"] = torch.tensor([p for _, p in PAIRS], dtype=torch.int32)
    for name, column in zip(["coef_x0", "coef_xt", "std_small", "std_large"], zip(*rows)):
        out[f"posterior/{name}"] = f64(column)

    torch.manual_seed(2)
    steps = list(range(900, -1, -100))
    # Three times the usual noise, so that clipping has something to do.
    x, noise = 3 * torch.randn(2, 1, 4, 4), 3 * torch.randn(len(steps), 2, 1, 4, 4)
    out |= {"run/in/x": x, "run/in/noise": noise, "run/timesteps": torch.tensor(steps, dtype=torch.int32)}
    for large in (False, True):
        for clip in (False, True):
            name = f"run/{'large' if large else 'small'}_{'clip' if clip else 'noclip'}"
            xs, x0s = reverse(abar, steps, x.double(), noise.double(), large, clip)
            theirs = reverse_diffusers(steps, x, noise, large, clip).double()
            error = ((theirs - xs[-1]).abs() / xs[-1].abs().clamp(min=1)).max().item()
            assert error <= 1e-4, (name, error)
            print(f"{name}: max |x| {xs[-1].abs().max():.3f}, DDPMScheduler in f32 differs by {error:.1e}")
            out |= {f"{name}/x": xs, f"{name}/x0": x0s}
        kind = "large" if large else "small"
        assert not torch.allclose(out[f"run/{kind}_clip/x"][-1], out[f"run/{kind}_noclip/x"][-1], atol=0.1)
    linear = dict(kind="linear", beta_start=1e-4, beta_end=0.02, steps=T)
    run = dict(model="eps = x * t / (t + 1)", clip_range=1.0)
    unet_golden.save(GOLDEN / "schedule.safetensors", out, schedule=linear, run=run)


# ------------------------------------------------------------------------------------------------------------- ops
def op(out, info, name, f, output, inputs, **args):
    """f(*inputs) in f64, its output and the gradients of sum(output * dy); inputs {name: f32 tensor}."""
    leaves = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y = f(*leaves.values())
    dy = torch.randn(y.shape)
    grads = torch.autograd.grad((y * dy.double()).sum(), list(leaves.values()))
    out |= {f"{name}/in/{k}": v for k, v in inputs.items()}
    out |= {f"{name}/in/d{output}": dy, f"{name}/{output}": y.detach()}
    out |= {f"{name}/d{k}": g for k, g in zip(leaves, grads)}
    info[name] = args


def ops():
    torch.manual_seed(3)
    out, info = {}, {}
    t = torch.tensor([0.0, 1.0, 10.0, 12.5, 500.0, 999.0])
    out["temb/in/t"] = t
    for d in (32, 33):
        for flip in (False, True):
            for shift in (0, 1):
                e = unet_golden.timestep_embedding_f64(t, d, flip, shift)
                theirs = get_timestep_embedding(t, d, flip, shift).double()
                assert (e - theirs).abs().max() <= 1e-4
                out[f"temb/d{d}_flip{int(flip)}_shift{shift}"] = e
    e = unet_golden.timestep_embedding_f64(t, 128, False, 1)[2]  # t = 10; known values of google/ddpm-*'s embedding
    known = {0: -0.5440211, 1: 0.7067498, 2: 0.9252049, 63: 0.00099999983, 64: -0.8390715, 127: 0.9999995}
    assert all(abs(e[i] - v) <= 1e-7 for i, v in known.items())

    # Means away from zero, as real activations have.
    x, c = torch.randn(2, 6, 3, 5) * 2 + 1, torch.randn(4, 6)
    affine = dict(x=x, gamma=c[0] * 0.4 + 1, beta=c[1] * 0.3)
    for groups, eps in ((3, 1e-5), (2, 1e-6), (6, 1e-5)):
        norm = lambda x, g, b: F.group_norm(x, groups, g, b, eps)
        op(out, info, f"group_norm_g{groups}", norm, "y", affine, groups=groups, eps=eps)
        silu = lambda x, g, b: F.silu(norm(x, g, b))
        op(out, info, f"group_norm_silu_g{groups}", silu, "y", affine, groups=groups, eps=eps)

    # [N, heads, tokens, head width]; scores softmax(q k^T / sqrt(head width)).
    for name, shape in (("sdpa", (2, 3, 10, 4)), ("sdpa_one_head", (1, 1, 35, 6))):
        q, k, v = torch.randn(3, *shape) * 1.5
        op(out, info, name, F.scaled_dot_product_attention, "o", dict(q=q, k=k, v=v), scale=shape[-1] ** -0.5)

    # pad is (left, right, top, bottom), as F.pad counts.
    x = torch.randn(2, 3, 6, 8)
    for name, k, stride, pad in (("conv_down_asymmetric", 3, 2, (0, 1, 0, 1)), ("conv_down", 3, 2, (1, 1, 1, 1)),
                                 ("conv", 3, 1, (1, 1, 1, 1)), ("conv_1x1", 1, 1, (0, 0, 0, 0))):
        w, b = torch.randn(5, 3, k, k) / math.sqrt(3 * k * k), torch.randn(5) * 0.3
        f = lambda x, w, b: F.conv2d(F.pad(x, pad), w, b, stride=stride)
        op(out, info, name, f, "y", dict(x=x, w=w, b=b), stride=stride, pad=pad)
    f = lambda x, w, b: F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), w, b, padding=1)
    w, b = torch.randn(5, 3, 3, 3) / math.sqrt(27), torch.randn(5) * 0.3
    op(out, info, "upsample_conv", f, "y", dict(x=x[:, :, :3, :4], w=w, b=b), scale=2, stride=1, pad=(1, 1, 1, 1))
    unet_golden.save(GOLDEN / "ops.safetensors", out, ops=info)


# ----------------------------------------------------------------------------------------------------------- check
def verify():
    """Reload what was written: names, shapes, dtypes, finite values, metadata, sizes."""
    total = 0
    for path in sorted(GOLDEN.iterdir()):
        if path.is_dir():
            continue
        size = path.stat().st_size
        total += size
        print(f"{size:9,}  {path.name}")
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, "pt") as f:
            if "format" in (f.metadata() or {}):
                continue  # written by a library: its metadata are no JSON texts
            meta = {k: json.loads(v) for k, v in (f.metadata() or {}).items()}
            tensors = {k: f.get_tensor(k) for k in f.keys()}
        assert {v.dtype for v in tensors.values()} <= {torch.float32, torch.float64, torch.int32}
        assert all(v.isfinite().all() for v in tensors.values()), path
        if path.name.startswith("vae_"):
            verify_vae(path, tensors, meta)
        if not path.name.startswith("unet_"):
            continue
        with torch.device("meta"):
            shapes = {n: v.shape for n, v in UNet2DModel.from_config(meta["config"]).state_dict().items()}
        zero = set(meta["zero_grad"])
        assert {k[6:] for k in tensors if k.startswith("param/")} == set(shapes)
        assert all(tensors[f"param/{n}"].shape == s == tensors[f"f64/grad/{n}"].shape for n, s in shapes.items())
        assert set(meta["f32_error"]) == {"out", "dx"} | (set(shapes) - zero) and zero < set(shapes)
        assert all(v > 0 for v in [*meta["f32_error"].values(), *meta["f32_error_layer"].values()])
        assert tensors["f64/dx"].shape == tensors["in/x"].shape and tensors["f64/out"].shape == tensors["in/dy"].shape
    print(f"{total:9,}  in all")


def verify_vae(path, tensors, meta):
    config, size = meta["config"], tensors["in/x"].shape[2:]
    assert list(size) == [meta["image_size"]] * 2
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in vae_golden.model_of(config, size[0]).state_dict().items()}
    zero, forward = set(meta["zero_grad"]), {k[4:] for k in tensors if k.startswith("f64/") and "grad" not in k}
    assert forward == {"mean", "z", "out", "loss", "reconstruction"} | ({"log_var", "kl"} if config["variational"] else set())
    assert ("in/eps" in tensors) == config["variational"]
    assert {k[6:] for k in tensors if k.startswith("param/")} == set(shapes)
    assert all(tensors[f"param/{n}"].shape == s == tensors[f"f64/grad/{n}"].shape for n, s in shapes.items())
    assert set(meta["f32_error"]) == forward | (set(shapes) - zero) and zero < set(shapes)
    assert all(v >= 0 for v in meta["f32_error"].values())  # a single number can be exact
    assert all(v > 0 for v in meta["f32_error_layer"].values())
    assert tensors["f64/out"].shape == tensors["in/x"].shape and tensors["in/x"].abs().max() == 1
    assert meta["margin"] > 1e-4 and path.stat().st_size < 250_000, path


if __name__ == "__main__":
    torch.set_num_threads(2)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    unets()
    unet_names()
    vaes()
    vae_names()
    optim()
    schedule()
    unconditional_golden.write(GOLDEN / "unconditional.safetensors")
    ops()
    formats.write(GOLDEN)
    folders.committed(GOLDEN / "folders")
    write_book("diffusers_names.json", formats.names())
    verify()
