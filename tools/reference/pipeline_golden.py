"""What a seed gives in the diffusers library: tests/golden/seeds.json.

Initial weights of two small U-Nets (of each parameter the first and the last element, and the sum), and the
pictures that DDPMPipeline and DDIMPipeline draw of the first, of seeds 0 and 0 in two steps. The weights are
f32; the model then runs in f64, with the library's own schedulers. The nine values that its tests publish are
checked on the way.
"""
import json
import pathlib

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

TINY = dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
CLASSES = dict(block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, sample_size=16, in_channels=1, out_channels=1,
               down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
               up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), num_class_embeds=10,
               resnet_time_scale_shift="scale_shift")
# tests/pipelines/ddpm and ddim of the library: image[0, -3:, -3:, -1]
PUBLISHED = {
    "ddpm": ([0, 0.9996672, 0.00329116, 1, 0.9995991, 1, 0.0060907, 0.00115037, 0], 2e-6),
    "ddim": ([0, 0.9979, 0, 0.9999, 0.9986, 0.9991, 7.106e-4, 0, 0], 1e-4),
}


def weights(config, seed):
    torch.manual_seed(seed)
    model = UNet2DModel(**config)
    flat = {name: p.detach().double().flatten() for name, p in model.named_parameters()}
    ends = {name: [p[0].item(), p[-1].item(), p.sum().item()] for name, p in flat.items()}
    return model, {"config": config, "seed": seed, "weights": ends}


def picture(model, scheduler):
    """As the pipelines do, without their last clamp."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(2)
    x = torch.randn(1, 3, 8, 8, generator=generator).double()
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = model(x, t).sample
        if isinstance(scheduler, DDPMScheduler) and t > 0:
            noise = torch.randn(out.shape, generator=generator).double()
            module = __import__("sys").modules[DDPMScheduler.__module__]
            module.randn_tensor = lambda *_, **__: noise
        x = scheduler.step(out, t, x).prev_sample
    return x[0]


def main():
    out = pathlib.Path(__file__).parents[2] / "tests/golden/seeds.json"
    tiny, first = weights(TINY, 0)
    _, second = weights(CLASSES, 7)
    tiny.double().eval()
    pictures = {}
    for name, scheduler in [("ddpm", DDPMScheduler()), ("ddim", DDIMScheduler())]:
        x = picture(tiny, scheduler)
        wanted, tolerance = PUBLISHED[name]
        got = (x / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)[-3:, -3:, -1].flatten()
        err = (got - torch.tensor(wanted).double()).abs().max().item()
        print(name, "off the published values by", err)
        assert err <= tolerance
        pictures[name] = [float(f"{v:.9g}") for v in x.flatten().tolist()]
    out.write_text(json.dumps({"models": [first, second], "pictures": pictures}) + "\n")
    print(out, out.stat().st_size, "bytes")


main()
