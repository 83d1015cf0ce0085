"""Time and memory of a LoRA training step on a folder of Stable Diffusion's full size (large_sd.py makes one), denoir beside diffusers
with peft on the CPU, in turn:

    python tools/reference/large_lora.py FOLDER target/release/denoir [--size 256] [--steps 4] [--rounds 1] [--threads 2]

Adapters of rank 4 of all attention layers of the U-Net, one image a step, AdamW, f32 arithmetic, no checkpointing of blocks; latents are
encoded once, captions by the text encoder in each step. A step is the difference of runs of STEPS and of one step, over STEPS - 1. Memory
is the peak resident set of the process.
"""
import json
import pathlib
import sys
import tempfile

from large_time import compare, parsed


def train(folder, size, steps, threads):
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextModel, CLIPTokenizer
    torch.set_num_threads(threads)
    load = lambda kind, part: kind.from_pretrained(folder, subfolder=part, torch_dtype=torch.float32).requires_grad_(False)
    text, vae, unet = load(CLIPTextModel, "text_encoder"), load(AutoencoderKL, "vae"), load(UNet2DConditionModel, "unet")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    noise = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-4)
    with torch.no_grad():
        moments = vae.encode(torch.zeros(1, 3, size, size)).latent_dist
    ids = torch.tensor([tokenizer("a photo of a cat", padding="max_length", max_length=77).input_ids])
    for _ in range(steps):
        x0 = moments.sample() * vae.config.scaling_factor
        eps, t = torch.randn_like(x0), torch.randint(0, 1000, (1,))
        with torch.no_grad():
            seen = text(ids).last_hidden_state
        loss = torch.nn.functional.mse_loss(unet(noise.add_noise(x0, eps, t), t, seen).sample, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def main():
    args = parsed(__doc__, 256, 4)
    out = pathlib.Path(tempfile.mkdtemp())
    (out / "data").mkdir()
    from PIL import Image
    with (out / "data/metadata.jsonl").open("w") as f:
        # One: the latents of others would be encoded in the steps that first meet them.
        Image.new("RGB", (args.size, args.size), (60, 80, 120)).save(out / "data/0.png")
        f.write(json.dumps({"file_name": "0.png", "text": "a photo of a cat"}) + "\n")
    keys = [f"--set={key}" for key in ("lora_rank=4", f"image_size={args.size}", "batch_size=1", "accumulation=1", "evaluate_count=0")]
    compare(args, {
        "denoir": lambda number, steps: [args.denoir, "train", "text-to-image", "--base", args.folder, "--data", f"images:{out / 'data'}",
                                         "--device", "cpu", "--steps", steps, "--sample-every", "never",
                                         "--out", out / f"run-{number}-{steps}", *keys],
        "peft": lambda _, steps: [sys.executable, __file__, "--train", args.folder, args.size, steps, args.threads],
    })


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        folder, *numbers = sys.argv[2:]
        train(folder, *map(int, numbers))
    else:
        main()
