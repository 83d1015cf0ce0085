"""Random models of diffusers through denoir and back: saved by diffusers in every form that it has, read with `denoir
import`, written with `denoir export`, loaded by diffusers again.  The weights must be the same bits, and so must the answers
to the same input.

    python tools/reference/round_trip.py PATH/TO/denoir [SEED]
"""
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel, VQModel

import formats

DOWN = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D", "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}
FORMS = {"safetensors": {}, "bin": dict(safe_serialization=False), "shards": dict(max_shard_size="8KB"),
         "bin shards": dict(max_shard_size="8KB", safe_serialization=False), "fp16": dict(variant="fp16")}


def unet(r):
    levels = r.randint(1, 3)
    down = [r.choice(list(DOWN)) for _ in range(levels)]
    channels = r.randint(1, 4)
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, center_input_sample=r.random() < 0.3,
        freq_shift=r.choice([0, 1]), flip_sin_to_cos=r.random() < 0.5, down_block_types=down,
        mid_block_type=r.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]), up_block_types=[DOWN[d] for d in reversed(down)],
        block_out_channels=[r.choice([4, 8, 12]) for _ in range(levels)], layers_per_block=r.randint(1, 2),
        mid_block_scale_factor=r.choice([1, 1.5]), downsample_padding=r.choice([0, 1]),
        downsample_type=r.choice(["conv", "resnet"]), upsample_type=r.choice(["conv", "resnet"]),
        act_fn=r.choice(["silu", "relu", "gelu"]), attention_head_dim=r.choice([None, 2, 4]), norm_num_groups=r.choice([1, 2, 4]),
        attn_norm_num_groups=r.choice([None, 1, 2]), norm_eps=r.choice([1e-5, 1e-6]),
        resnet_time_scale_shift=r.choice(["default", "scale_shift"]), add_attention=r.random() < 0.7,
        time_embedding_dim=r.choice([None, 10]))


def autoencoder(r):
    levels = r.randint(1, 3)
    both = dict(block_out_channels=[r.choice([4, 8]) for _ in range(levels)], down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels, layers_per_block=r.randint(1, 2), sample_size=8,
                norm_num_groups=r.choice([1, 2, 4]), latent_channels=r.randint(1, 4), mid_block_add_attention=r.random() < 0.5)
    if r.random() < 0.5:
        return VQModel(num_vq_embeddings=r.randint(2, 40), vq_embed_dim=r.choice([None, 2, 5]), **both)
    return AutoencoderKL(use_quant_conv=r.random() < 0.5, use_post_quant_conv=r.random() < 0.5, **both)


def answer(model):
    x = torch.randn(2, model.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return (model(x, 500) if isinstance(model, UNet2DModel) else model(x)).sample


def main():
    denoir = str(pathlib.Path(sys.argv[1]).resolve())
    r = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    call = lambda *args: subprocess.run([denoir, *map(str, args)], check=True, stdout=subprocess.DEVNULL)
    for number in range(40):
        make, form = r.choice([unet, autoencoder]), r.choice(list(FORMS))
        model = formats.vivid(make(r), number).eval()
        if form == "fp16":
            model = model.half()
        whole = isinstance(model, UNet2DModel) and form == "safetensors"
        with tempfile.TemporaryDirectory() as folder:
            at = pathlib.Path(folder)
            saved = DDPMPipeline(unet=model, scheduler=DDPMScheduler()) if whole else model
            saved.save_pretrained(at / "theirs", **FORMS[form])
            call("import", at / "theirs", at / "run")
            call("export", at / "run", at / "ours")
            if isinstance(model, UNet2DModel):
                back = DDPMPipeline.from_pretrained(at / "ours").unet
            else:
                back = type(model).from_pretrained(at / "ours")
        model = model.float()
        theirs, ours = model.state_dict(), back.state_dict()
        assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
        assert all(torch.equal(v, ours[k]) for k, v in theirs.items()), [k for k, v in theirs.items() if not torch.equal(v, ours[k])]
        assert torch.equal(answer(model), answer(back.eval())), (form, model.config)
        print(number, type(model).__name__, form, f"{sum(p.numel() for p in model.parameters())} parameters: the same")


main()
