"""Random tiny pipelines of Stable Diffusion, drawn by diffusers and by denoir: the pictures compared.

    python text_round_trip.py DENOIR [--count N] [--seed N]

Twenty pipelines over the options (heads, widths, depths, projections, SD1- and SD2-like text models and padding, prediction types,
schedulers, sizes, several prompts and images, image to image, inpainting with 4 and 9 channels, LoRA in two spellings), saved by
save_pretrained; `DENOIR sample --rng torch` must draw the same within one level of 255.  The last is a run of `shapes-text` of two steps,
exported and drawn by both.  Writes nothing but a temporary folder.
"""
import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import numpy
import safetensors.torch
import torch
import diffusers
from diffusers import (AutoencoderKL, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
                       UNet2DConditionModel)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny_sd import MERGES, pictures, write_tokenizer

SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
              "UniPCMultistepScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDPMScheduler"]


def folder_of(folder, rng, channels):
    two = rng.random() < 0.5  # SD2-like
    pad = "!" if two else "<|endoftext|>"
    size = write_tokenizer(folder / "own_tokenizer", MERGES, pad)
    hidden = rng.choice([16, 24])
    torch.manual_seed(rng.randrange(1 << 30))
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=size, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=rng.choice([1, 2, 3]),
        num_attention_heads=rng.choice([2, 4]), max_position_embeddings=77, hidden_act="gelu" if two else "quick_gelu",
        bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1)).eval()
    levels = rng.choice([2, 3])
    widths = rng.choice([(8, 16, 16), (16, 16, 32), (8, 24, 32)])[:levels]
    cross = [rng.random() < 0.7 for _ in range(levels)]
    if not any(cross):
        cross[0] = True
    unet = UNet2DConditionModel(
        in_channels=channels, block_out_channels=widths, layers_per_block=rng.choice([1, 2]), sample_size=8,
        cross_attention_dim=hidden, attention_head_dim=rng.choice([2, [2, 4, 4][:levels]]), use_linear_projection=two,
        norm_num_groups=rng.choice([4, 8]), transformer_layers_per_block=rng.choice([1, 2]),
        only_cross_attention=rng.random() < 0.2, mid_block_type=rng.choice(["UNetMidBlock2DCrossAttn"] * 4 + ["UNetMidBlock2D"]),
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in cross[::-1]]).eval()
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if "attn2" in name:
                p.mul_(3)
    vae = AutoencoderKL(block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4,
                        up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4, sample_size=16).eval()
    prediction = rng.choice(["epsilon", "v_prediction"])
    cls = rng.choice(SCHEDULERS)
    kept = dict(skip_prk_steps=True) if cls == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, cls)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
                                        steps_offset=rng.choice([0, 1]), **kept) if cls != "HeunDiscreteScheduler" else \
        getattr(diffusers, cls)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction)
    return StableDiffusionPipeline(vae, text, CLIPTokenizer.from_pretrained(folder / "own_tokenizer"), unet, scheduler,
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def write_lora(pipe, path, kohya):
    tensors = {}
    for n, m in sorted(pipe.unet.named_modules()):
        if n.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down, up = torch.randn(2, m.in_features) / m.in_features ** 0.5, torch.randn(m.out_features, 2) / 4
            if kohya:
                key = "lora_unet_" + n.replace(".", "_")
                tensors |= {key + ".lora_down.weight": down, key + ".lora_up.weight": up, key + ".alpha": torch.tensor(1.0)}
            else:
                tensors |= {f"unet.{n}.lora.down.weight": down, f"unet.{n}.lora.up.weight": up}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def levels(images):
    return (torch.tensor(images).double() * 255).round()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stderr


def drawn(at, count):
    files = sorted(at.glob("*.png"))
    assert len(files) == count, files
    return numpy.stack([numpy.asarray(Image.open(f).convert("RGB"), dtype=numpy.float64) for f in files])


def one(denoir, work, number, seed):
    rng = random.Random(1000 * seed + number)
    folder = work / f"pipeline-{number}"
    task = rng.choice(["text", "text", "text", "image", "inpaint", "inpaint9"])
    pipe = folder_of(folder, rng, 9 if task == "inpaint9" else 4)
    kind = dict(image=StableDiffusionImg2ImgPipeline, inpaint=StableDiffusionInpaintPipeline,
                inpaint9=StableDiffusionInpaintPipeline).get(task, StableDiffusionPipeline)
    pipe = kind(**pipe.components, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    pipe = kind.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    steps, guidance = rng.choice([3, 5, 8]), rng.choice([1.0, 3.5, 7.5])
    prompts = rng.choice([["A red circle!"], ["green", "a red circle in blue"]])
    each, own = rng.choice([1, 2]), rng.randrange(1000)
    arguments = dict(prompt=prompts, negative_prompt=["blue"] * len(prompts), num_inference_steps=steps, guidance_scale=guidance,
                     num_images_per_prompt=each, generator=torch.Generator().manual_seed(own), output_type="np")
    command = [denoir, "sample", folder, "--device", "cpu", "--rng", "torch", "--seed", own, "--steps", steps, "--guidance", guidance,
               "--negative", "blue", "--count", each, "--out", work / f"out-{number}"]
    for prompt in prompts:
        command += ["--prompt", prompt]
    if task == "text":
        height, width = rng.choice([(16, 16), (24, 16), (16, 40)])
        arguments |= dict(height=height, width=width)
        command += ["--height", height, "--width", width]
        rescale = rng.choice([0.0, 0.7]) if guidance > 1 else 0.0
        arguments["guidance_rescale"] = rescale
        command += ["--guidance-rescale", rescale] if rescale else []
    else:
        small, _, mask = pictures()
        picture, hole = Image.fromarray(small.transpose(1, 2, 0)), Image.fromarray(mask)
        picture.save(work / "picture.png")
        hole.save(work / "mask.png")
        strength = rng.choice([0.5, 0.8, 1.0])
        arguments |= dict(image=picture, strength=strength)
        command += ["--image", work / "picture.png", "--strength", strength]
        if task != "image":
            arguments |= dict(mask_image=hole)
            command += ["--mask", work / "mask.png"]
    if task == "text" and rng.random() < 0.5:
        kohya = rng.random() < 0.5
        write_lora(pipe, work / "lora.safetensors", kohya)
        scale = rng.choice([1.0, 0.5])
        pipe.load_lora_weights(work, weight_name="lora.safetensors")
        arguments["cross_attention_kwargs"] = dict(scale=scale)
        command += ["--lora", f"{work / 'lora.safetensors'}:{scale}"]
    theirs = levels(pipe(**arguments).images)
    run([str(c) for c in command])
    ours = torch.tensor(drawn(work / f"out-{number}", len(theirs)))
    apart = (ours - theirs).abs().max().item()
    about = f"{task}, {type(pipe.scheduler).__name__} {pipe.scheduler.config.prediction_type}, {steps} steps, guidance {guidance}"
    print(f"{number}: {about}, {len(theirs)} images, lora {'--lora' in command}: at most {apart:.0f} levels apart", flush=True)
    shutil.rmtree(folder)
    return apart


def from_nothing(denoir, work):
    """Trained by denoir, exported, drawn by both."""
    quick = ["--device", "cpu", "--batch-size", "4", "--sample-every", "never"]
    run([denoir, "train", "shapes-vae", "--steps", "3", "--out", work / "vae", *quick])
    run([denoir, "train", "shapes-text", "--steps", "3", "--vae", work / "vae", "--out", work / "text", *quick,
         "--set", "latent_count=16", "--set", "unet.zero_init=false"])
    run([denoir, "export", work / "text", work / "shapes"])
    pipe = StableDiffusionPipeline.from_pretrained(work / "shapes", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = levels(pipe("a small red circle", num_inference_steps=5, guidance_scale=3.0, output_type="np",
                         generator=torch.Generator().manual_seed(7)).images)
    run([denoir, "sample", work / "text", "--device", "cpu", "--rng", "torch", "--seed", "7", "--steps", "5", "--guidance", "3",
         "--prompt", "a small red circle", "--out", work / "shapes-out"])
    apart = (torch.tensor(drawn(work / "shapes-out", 1)) - theirs).abs().max().item()
    print(f"shapes-text, exported: at most {apart:.0f} levels apart")
    return apart


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("denoir")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    denoir = str(pathlib.Path(arguments.denoir).resolve())
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        apart = [one(denoir, work, number, arguments.seed) for number in range(arguments.count)]
        apart.append(from_nothing(denoir, work))
    print(f"{sum(a <= 1 for a in apart)} of {len(apart)} within one level")
    sys.exit(max(apart) > 1)


if __name__ == "__main__":
    main()
