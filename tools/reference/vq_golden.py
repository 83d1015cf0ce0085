"""A VQModel in training: diffusers' own model with seeded weights, its loss and every gradient, in f64.

    python vq_golden.py            # tests/golden/vq_gradients.safetensors

The file format is that of vae_golden.py, whose rules hold (the worst of PyTorch's f32 runs is the yardstick).  The terms
of the codebook are the library's VectorQuantizer with legacy = False: beta on the term that moves the latents.

    z = quant_conv(encoder(x))    e = the nearest code of each z    out = decoder(post_quant_conv(z + sg(e - z)))
    codebook = mean (z - e)^2     reconstruction = 1/N sum |out - x| or (out - x)^2
    loss = reconstruction + weight * (mean (sg(z) - e)^2 + commitment * mean (z - sg(e))^2)

Tensors: param/<name>, in/x; f64/z [N, C, h, w], f64/index [N h w], f64/codebook, f64/reconstruction, f64/loss, f64/out,
f64/grad/<name>.  Metadata besides: gap, the smallest difference of a latent's squared distances to its two nearest codes.
"""
import math
import pathlib

import torch
import torch.nn.functional as F
from diffusers import VQModel

from unet_golden import errors, save, weigh

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
CONFIG = dict(kind="vq", in_channels=2, widths=[6, 8], latent=3, norm_num_groups=2, variational=False, layers_per_block=1,
              mid_block_add_attention=True, num_vq_embeddings=11, inner_channels=5)
LOSS = dict(weight=400.0, commitment=0.25)
SIZE, BATCH, SEED = 8, 3, 231


def build():
    """A model whose every part matters: weights of variance 1/fan_in, codes where latents are."""
    torch.manual_seed(SEED)
    c = CONFIG
    model = VQModel(in_channels=c["in_channels"], out_channels=c["in_channels"], block_out_channels=c["widths"],
                    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
                    layers_per_block=c["layers_per_block"], norm_num_groups=c["norm_num_groups"], sample_size=SIZE,
                    latent_channels=c["inner_channels"], vq_embed_dim=c["latent"],
                    num_vq_embeddings=c["num_vq_embeddings"])
    model.quantize.legacy = False
    modules = dict(model.named_modules())
    x = torch.randn(BATCH, c["in_channels"], SIZE, SIZE).clamp(-1, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            layer = modules[name.rsplit(".", 1)[0]]
            if isinstance(layer, torch.nn.GroupNorm):
                p.copy_(torch.randn(p.shape) * 0.4 + 1.0 if name.endswith("weight") else torch.randn(p.shape) * 0.3)
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape) * 0.3)
            else:
                p.copy_(torch.randn(p.shape) / math.sqrt(p[0].numel()))
        # Codes near some of the latents, so that nearly all are used; the last is far away.
        z = model.encode(x).latents.movedim(1, -1).flatten(0, -2)
        chosen = z[torch.randperm(len(z))[: c["num_vq_embeddings"]]]
        model.quantize.embedding.weight.copy_(chosen + 0.3 * torch.randn(chosen.shape))
        model.quantize.embedding.weight[-1] = 9.0
    return model, x


def run(model, dtype, x):
    """The forward tensors and the gradients by name, all as f64."""
    model = model.to(dtype)
    model.zero_grad()
    x = x.to(dtype)
    z = model.encode(x).latents
    rounded, loss, (_, _, index) = model.quantize(z)
    out = model.decoder(model.post_quant_conv(rounded))
    t = {"z": z, "out": out, "codebook": ((rounded - z) ** 2).mean().reshape(1),
         "reconstruction": (F.mse_loss(out, x, reduction="sum") / len(x)).reshape(1)}
    # The library's loss with its beta of .25.
    assert model.quantize.beta == LOSS["commitment"]
    t["loss"] = t["reconstruction"] + LOSS["weight"] * loss
    t["loss"].backward()
    grads = {n: p.grad.double().clone() for n, p in model.named_parameters()}
    return {n: v.detach().double() for n, v in t.items()}, grads, index


def main():
    model, x = build()
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    runs = []
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            with torch.backends.mkldnn.flags(enabled=onednn):
                runs.append(run(model.to(memory_format=layout), torch.float32, x.to(memory_format=layout)))
    model = model.to(memory_format=torch.contiguous_format)
    t, g, index = run(model, torch.float64, x)
    assert all(bool((r[2] == index).all()) for r in runs)
    z, codes = t["z"].movedim(1, -1).flatten(0, -2), params["quantize.embedding.weight"].double()
    two = torch.cdist(z, codes).square().topk(2, largest=False).values
    gap = (two[:, 1] - two[:, 0]).min().item()
    assert gap > 1e-4, gap

    zero, weakest = weigh("vq_gradients", params, g, t["loss"].item())
    about = errors(t, g, runs, zero)
    error = about["f32_error"]
    tensors = {f"param/{n}": p for n, p in params.items()} | {"in/x": x}
    tensors |= {f"f64/{n}": v for n, v in t.items()} | {f"f64/grad/{n}": v for n, v in g.items()}
    tensors["f64/index"] = index.double()
    save(OUT / "vq_gradients.safetensors", tensors, config=CONFIG, loss=LOSS, image_size=SIZE, **about,
         gap=float(f"{gap:.4g}"), seed=SEED)
    used = len(set(index.tolist()))
    print(f"vq_gradients: {sum(p.numel() for p in params.values())} parameters, {len(g)} tensors ({zero} of zero gradient); "
          f"{used} codes used, gap {gap:.1e}; loss {t['loss'].item():.3f}, codebook {t['codebook'].item():.3f}; "
          f"f32 error: out {error['out']:.1e}, z {error['z']:.1e}; {weakest}")


if __name__ == "__main__":
    main()
