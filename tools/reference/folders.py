"""Folders of diffusers models with what they answer in f64: random ones over the option space, or those that are committed.

    python tools/reference/folders.py DIR [--count 30] [--seed 0]    DIR/000, DIR/001, ...
    DENOIR_FOLDERS=DIR cargo test many_folders -- --ignored --nocapture
    python tools/reference/folders.py tests/golden/folders --committed

Each folder is what save_pretrained writes (or older versions wrote), and answer.safetensors:

    in/x  f32    in/t  f32 [N]    in/labels  i32 [N] or f32 [N, T]    f64/out                UNet2DModel
    in/x  f32    f64/mean    f64/log_var (AutoencoderKL; bounded)    f64/out (mean decoded)  AutoencoderKL, VQModel

The f64 run takes the f32 values of weights and inputs; the decoder takes the f64 run's means, rounded to f32.  Metadata
f32_error: norm(f32 - f64) / norm(f64) of PyTorch's own f32, the worst of its CPU paths (unet_golden.py).  denoir's error, by
the same norm, may be twice that on the CPU device.
"""
import argparse
import copy
import json
import pathlib
import random

import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from torch.nn.attention import SDPBackend, sdpa_kernel

import formats
import unet_golden

DOWN = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D", "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def unet(r):
    """A small UNet2DModel of any form that denoir has; widths odd where the groups allow it."""
    levels, groups = r.randint(1, 3), r.choice([1, 2, 3, 4])
    down = [r.choice(list(DOWN)) for _ in range(levels)]
    channels = r.randint(1, 4)
    widths = [groups * r.choice([n for n in range(1, 16) if 4 <= groups * n <= 15]) for _ in range(levels)]
    time = r.choice(["positional", "positional", "fourier", "learned"])
    classes = r.choice([{}, {}, dict(num_class_embeds=7), dict(class_embed_type="timestep"), dict(class_embed_type="identity")])
    if time == "learned":
        classes = classes if classes.get("class_embed_type") != "timestep" else {}
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, center_input_sample=r.random() < 0.3,
        time_embedding_type=time, num_train_timesteps=1000 if time == "learned" else None,
        freq_shift=r.choice([0, 1]), flip_sin_to_cos=r.random() < 0.5, down_block_types=down,
        mid_block_type=r.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]), up_block_types=[DOWN[d] for d in reversed(down)],
        block_out_channels=widths, layers_per_block=r.randint(1, 2),
        mid_block_scale_factor=r.choice([1, 1.5]), downsample_padding=r.choice([0, 1]),
        downsample_type=r.choice(["conv", "resnet"]), upsample_type=r.choice(["conv", "resnet"]), dropout=r.choice([0.0, 0.1]),
        act_fn=r.choice(["silu", "swish", "relu", "gelu"]), attention_head_dim=r.choice([None, 1, 2, 3, 4]), norm_num_groups=groups,
        attn_norm_num_groups=r.choice([None, 1, widths[-1]]), norm_eps=r.choice([1e-5, 1e-6]),
        resnet_time_scale_shift=r.choice(["default", "scale_shift"]), add_attention=r.random() < 0.7,
        time_embedding_dim=r.choice([None, 10]), **classes)


def autoencoder(r):
    levels, groups = r.randint(1, 3), r.choice([1, 2, 3, 4])
    both = dict(block_out_channels=[groups * r.choice([2, 3]) for _ in range(levels)],
                in_channels=(channels := r.choice([1, 3])), out_channels=channels, sample_size=8,
                down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
                layers_per_block=r.randint(1, 2), norm_num_groups=groups, latent_channels=r.randint(1, 5),
                act_fn=r.choice(["silu", "relu", "gelu"]), mid_block_add_attention=r.random() < 0.6)
    if r.random() < 0.5:
        return VQModel(num_vq_embeddings=r.randint(2, 40), vq_embed_dim=r.choice([None, 2, 5]), **both)
    return AutoencoderKL(use_quant_conv=r.random() < 0.5, use_post_quant_conv=r.random() < 0.5, **both)


def vivid(model, seed):
    """As formats.vivid; Fourier frequencies and tables stay as the library draws them."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if n == "time_proj.weight"}
    formats.vivid(model, seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n in kept:
                p.copy_(kept[n])
    return model.eval()


def question(model, seed):
    """x, t and labels: three images for a UNet2DModel."""
    torch.manual_seed(seed)
    x = torch.randn(3, model.config.in_channels, 8, 8)
    if not isinstance(model, UNet2DModel):
        return x.clamp(-1, 1), None, None
    # Small times: where they are large, PyTorch's f32 sinusoids are off so far that the bound would hide all else.
    t = torch.tensor([1, 20, 60])
    if model.config.time_embedding_type == "fourier":
        t = torch.tensor([0.5, 20.25, 60.0])
    labels = unet_golden.labels_for(model.config, 3)
    if model.config.class_embed_type == "timestep":
        labels = labels % 50 + 1
    return x, t, labels


def answers(model, dtype, x, t, labels, mean=None):
    """By name, in f64."""
    cast = lambda v: v.to(dtype) if v is not None and v.is_floating_point() else v
    model = model.to(dtype)
    with torch.no_grad():
        if isinstance(model, UNet2DModel):
            return {"out": model(cast(x), cast(t), class_labels=cast(labels)).sample.double()}
        if isinstance(model, VQModel):
            found = {"mean": model.encode(cast(x)).latents}
        else:
            posterior = model.encode(cast(x)).latent_dist
            found = {"mean": posterior.mean, "log_var": posterior.logvar}
        # Both runs decode the same: what the exact run found, as f32.
        z = (found["mean"] if mean is None else mean).float()
        found["out"] = model.decode(z.to(dtype)).sample
    return {k: v.double() for k, v in found.items()}


def f32_answers(model, *question, mean):
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            for attention in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
                with torch.backends.mkldnn.flags(enabled=onednn), sdpa_kernel([attention, SDPBackend.MATH]):
                    yield answers(model.to(memory_format=layout), torch.float32, *question, mean=mean)
    model.to(memory_format=torch.contiguous_format)


def clear(model, mean):
    """Whether no vector is as near to two codes as rounding is."""
    codes = model.quantize.embedding.weight.double()
    apart = torch.cdist(mean.float().double().permute(0, 2, 3, 1).reshape(-1, codes.shape[1]), codes).sort(1).values
    return (apart[:, 1] - apart[:, 0]).min() > 1e-4


def write(folder, model, seed, save=None):
    """The folder of a model, by `save` or as the library does it, with its answers."""
    exact = copy.deepcopy(model).double()
    if isinstance(model, UNet2DModel) and model.config.time_embedding_type == "positional":
        exact.time_proj = unet_golden.TimestepsF64(model.config)
    while True:
        x, t, labels = question(model, seed)
        wanted = answers(exact, torch.float64, x, t, labels)
        if not isinstance(model, VQModel) or clear(model, wanted["mean"]):
            break
        seed += 1000
    runs = list(f32_answers(copy.deepcopy(model), x, t, labels, mean=wanted.get("mean")))
    error = {k: max(unet_golden.relative(run[k], v) for run in runs) for k, v in wanted.items()}
    assert all(v.norm() > 0 for v in wanted.values())
    folder.mkdir(parents=True, exist_ok=True)
    (save or (lambda f: model.save_pretrained(f)))(folder)
    tensors = {"in/x": x} | {f"f64/{k}": v for k, v in wanted.items()}
    if t is not None:
        tensors["in/t"] = t.float()
    if labels is not None:
        tensors["in/labels"] = labels if labels.is_floating_point() else labels.to(torch.int32)
    unet_golden.save(folder / "answer.safetensors", tensors, f32_error={k: float(f"{v:.4g}") for k, v in error.items()})
    print(folder, type(model).__name__, {k: f"{v:.1e}" for k, v in error.items()})


def old_names(model, pointwise):
    """Weights as versions before 0.12 named those of attention; pointwise: as convolutions of one pixel."""
    old = {}
    for name, value in model.state_dict().items():
        for new, was in OLD.items():
            if "attentions" in name and f".{new}." in name:
                name = name.replace(new, was)
                value = value[:, :, None, None] if pointwise and value.ndim == 2 else value
        old[name] = value.clone()
    return old


def committed(parent):
    base = dict(sample_size=8, layers_per_block=1, norm_num_groups=2, block_out_channels=[4, 6])
    d, a, u, au = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
    model = vivid(UNet2DModel(down_block_types=[d, a], up_block_types=[au, u], attention_head_dim=3, **base), 1)

    def as_bin(folder):
        config = json.loads(model.to_json_string())
        config |= dict(down_block_types=["UNetRes" + d, "UNetRes" + a], up_block_types=["UNetRes" + au, "UNetRes" + u])
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        torch.save(old_names(model, False), folder / "diffusion_pytorch_model.bin")

    # A zip of pickled tensors under old names, blocks by their first names.
    write(parent / "unet_bin_old_names", model, 1, as_bin)
    levels = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    vae = vivid(AutoencoderKL(latent_channels=2, **base, **levels), 2)

    def as_convolutions(folder):
        vae.save_config(folder)
        torch.save(old_names(vae, True), folder / "diffusion_pytorch_model.bin")

    write(parent / "kl_bin_convolutions", vae, 2, as_convolutions)
    write(parent / "vq", vivid(VQModel(latent_channels=3, vq_embed_dim=2, num_vq_embeddings=19, **base, **levels), 3), 3)
    write(parent / "unet_fourier_timestep", vivid(UNet2DModel(
        down_block_types=[d, a], up_block_types=[au, u], attention_head_dim=2, time_embedding_type="fourier",
        class_embed_type="timestep", **base), 4), 4)
    # Odd widths, residual samplers, one head as wide as its level, asymmetric padding, FiLM.
    write(parent / "unet_odd", vivid(UNet2DModel(
        **(base | dict(block_out_channels=[9, 5, 7], norm_num_groups=1)), down_block_types=[a, "ResnetDownsampleBlock2D", d],
        up_block_types=[u, "ResnetUpsampleBlock2D", au], attention_head_dim=None, downsample_type="resnet", upsample_type="resnet",
        downsample_padding=0, resnet_time_scale_shift="scale_shift", add_attention=False, mid_block_scale_factor=2.0,
        center_input_sample=True, act_fn="gelu", time_embedding_type="learned", num_train_timesteps=70), 5), 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--committed", action="store_true")
    args = parser.parse_args()
    if args.committed:
        return committed(args.folder)
    r = random.Random(args.seed)
    for number in range(args.count):
        model = r.choice([unet, unet, autoencoder])(r)
        write(args.folder / f"{number:03}", vivid(model, number), number)


if __name__ == "__main__":
    main()
