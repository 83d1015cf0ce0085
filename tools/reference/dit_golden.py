"""DiT goldens: diffusers' own DiTTransformer2DModel with seeded weights, its output and every gradient, in f64.

    python dit_golden.py            # tests/golden/dit_*.safetensors, and the published numbers in dit_published.json

As unet_golden.py (whose file format this is): the f64 run takes the f32 values of parameters and inputs, and the worst
of PyTorch's f32 runs is the yardstick; the sinusoids of the timestep are made in f64 there.  In training mode the
library draws label drop-out anew in every block, so the model is in evaluation mode.

dit_published.json: the test of diffusers' tests/pipelines/dit/test_dit.py, run here.  Seed 0 makes the transformer, and
then the autoencoder from the same stream; the published slice of its picture is checked here.  Kept are, of the
transformer alone, `forward`: some numbers of the output on x = randn(2, 4, 16, 16; seed 7), t = 500, 3, classes 1 and
1000; and `guided_latents` [4, 4]: the last numbers of the last row of each channel of the latents of that picture.
"""
import json
import math
import pathlib

import numpy
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import unet_golden
from unet_golden import config_json, errors, f32_runs, save, timestep_embedding_f64, weigh

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"

CASES = {
    # Twice the channels (learned variance), patches of 2, two heads; a class, a null class, a class again.
    "two_blocks": dict(config=dict(num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=6, num_layers=2,
                                   sample_size=6, patch_size=2, num_embeds_ada_norm=3),
                       t=[3.0, 42.5, 77.0], labels=[1, 3, 1]),
    # One head, patches of 4 of an image of one channel, exact GELU, another epsilon, no classes but none; t up to 999.
    "no_classes": dict(config=dict(num_attention_heads=1, attention_head_dim=12, in_channels=1, num_layers=1, sample_size=8,
                                   patch_size=4, num_embeds_ada_norm=0, activation_fn="gelu", norm_eps=0.1),
                       t=[0.0, 999.0], labels=[0, 0]),
}


class TimestepsF64(torch.nn.Module):
    """Stands in for diffusers' `Timesteps` in the f64 run."""

    def forward(self, t):
        return timestep_embedding_f64(t, 256, True, 1)


def build(config, seed):
    """A DiT whose every part matters: weights of variance 1/fan_in, and gates about 1."""
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(**config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.randn(p.shape) * 0.3)
            elif "embedding_table" not in name:
                gain = 1.3 if "to_q" in name or "to_k" in name else 1.0
                p.copy_(torch.randn(p.shape) * gain / math.sqrt(p[0].numel()))
    return model


def write(name, config, t, labels, seed):
    model = build(config, seed)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    side, batch = config["sample_size"], len(t)
    x = torch.randn(batch, config["in_channels"], side, side)
    dy = torch.randn(batch, model.out_channels, side, side)
    t, labels = torch.tensor(t), torch.tensor(labels)

    runs = list(f32_runs(model, x, t, labels, dy))
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj = TimestepsF64()
    out, dx, g = unet_golden.run(model, torch.float64, x, t, labels, dy)

    zero, weakest = weigh(name, params, g, out.norm().item() * dy.double().norm().item())
    about = errors({"out": out, "dx": dx}, g, [({"out": r[0], "dx": r[1]}, r[2]) for r in runs], zero)
    error = about["f32_error"]
    tensors = {f"param/{n}": p for n, p in params.items()}
    tensors |= {"in/x": x, "in/t": t, "in/dy": dy, "f64/out": out, "f64/dx": dx}
    if config["num_embeds_ada_norm"]:
        tensors["in/labels"] = labels.to(torch.int32)
    tensors |= {f"f64/grad/{n}": v for n, v in g.items()}
    save(OUT / f"dit_{name}.safetensors", tensors, config=config_json(model), **about, seed=seed,
         loss=(out * dy.double()).sum().item())
    print(f"{name}: {sum(p.numel() for p in params.values())} parameters, {len(g)} tensors, {len(zero)} of zero gradient; "
          f"f32 error: out {error['out']:.1e}, dx {error['dx']:.1e}; {weakest}")


def published():
    """The numbers of the library's own test."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(sample_size=16, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=2,
                                  in_channels=4, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
                                  num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False)
    vae = AutoencoderKL()
    model.eval(), vae.eval()
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        out = model(x, timestep=torch.tensor([500, 3]), class_labels=torch.tensor([1, 1000])).sample
    pipe = DiTPipeline(transformer=model, vae=vae, scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    image = pipe(class_labels=[1], generator=torch.manual_seed(0), guidance_scale=4.0, num_inference_steps=2,
                 output_type="np").images
    slice_ = [0.2946, 0.6601, 0.4329, 0.3296, 0.4144, 0.5319, 0.7273, 0.5013, 0.4457]
    ours = image[0, -3:, -3:, -1].flatten()
    assert numpy.abs(ours - numpy.array(slice_)).max() < 1e-3, ours
    # The latents of that picture, some of each channel's last row.
    latents = []
    pipe.vae.decode = lambda z: (latents.append(z * vae.config.scaling_factor), AutoencoderKL.decode(vae, z))[1]
    pipe(class_labels=[1], generator=torch.manual_seed(0), guidance_scale=4.0, num_inference_steps=2, output_type="np")
    round_ = lambda v: [float(f"{x:.9g}") for x in v.flatten().tolist()]
    text = json.dumps(dict(
        config=config_json(model), parameters=sum(p.numel() for p in model.parameters()),
        tensors=[[n, list(p.shape)] for n, p in model.named_parameters()],
        forward=dict(first=round_(out[0, 0, 0, :4]), last=round_(out[1, 7, 15, 12:]), squares=(out.double() ** 2).sum().item()),
        guided_latents=round_(latents[0][0, :, -1, -4:])))
    (OUT / "dit_published.json").write_text(text.replace("], [\"", "],\n[\"") + "\n")
    print("published: ", round_(out[0, 0, 0, :4]), round_(out[1, 7, 15, 12:]), (out ** 2).sum().item(), ours)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(CASES.items(), 300):
        write(name, seed=seed, **case)
    published()
