"""A Stable Diffusion folder that is small enough to commit, and what the library draws with it: tests/golden/tiny_sd,
tiny_sd.safetensors, tiny_sd_lora.safetensors.

    python tiny_sd.py            # and the folder of the sheet's numbers in /tmp/tiny_sd, with --large

The folder is as transformers 4 wrote it: vocab.json and merges.txt, the text encoder's names with "text_model.".  Weights are
f16; the runs are of their values in f32 and f64 (with the noise of the f32 run, and sinusoids in f64).

tiny_sd.safetensors: in/picture, in/picture_large [3,H,W], in/mask [H,W] (I32, bytes); ids/<i> [77] of `prompts`[i], and
embeddings/<i> [77,D] of the first three; for each case of the metadata `cases` <case>/latents (F64, before they are divided
by scaling_factor) and <case>/image (F32, [B,3,H,W] in [0, 1]) of the f64 run.  A case has
    arguments of the library's pipelines; where it does not say: PROMPT, NEGATIVE, 3 steps, guidance 6, seed 0
    task         img2img or inpaint; picture: "large"
    cls, scheduler   the class of the sampler where it is not the folder's, and keys changed in the folder's file
    seeds        one generator for all, or one for each image
    lora         the scale of tiny_sd_lora.safetensors
    runs_as, timesteps   the configuration of the scheduler after the pipeline's overrides; the steps
    error        what f32 differs by at most: latents (of their largest value), image
"""
import argparse
import json
import pathlib
import shutil

import numpy
import safetensors.torch
import torch
import diffusers
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
                       StableDiffusionPipeline, UNet2DConditionModel)
from diffusers.utils import torch_utils
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unet_golden import TimestepsF64, save

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
MERGES = ["i n", "r e", "re d</w>", "c i", "ci r", "cir c", "l e</w>", "circ le</w>"]
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                 steps_offset=1)
PROMPT, NEGATIVE = "A red circle!", "blue"


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(folder, merges, pad="<|endoftext|>"):
    """The slow layout; returns the size of the vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {t: i for i, t in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(m + "\n" for m in merges))
    token = lambda t: {"content": t, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    bos, eos = token("<|startoftext|>"), token("<|endoftext|>")
    write_json(folder / "special_tokens_map.json", dict(bos_token=bos, eos_token=eos, pad_token=pad, unk_token=eos))
    kind = lambda t: {"__type": "AddedToken"} | t
    write_json(folder / "tokenizer_config.json", dict(
        add_prefix_space=False, bos_token=kind(bos), do_lower_case=True, eos_token=kind(eos), errors="replace",
        model_max_length=77, pad_token=pad, tokenizer_class="CLIPTokenizer", unk_token=kind(eos)))
    return len(tokens)


def formula(model):
    """Weights of a text model: sines."""
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted((n.removeprefix("text_model."), p) for n, p in model.named_parameters())):
            v = torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64) + k).view(p.shape)
            p.copy_(v / p[0].numel() ** 0.5 if p.ndim > 1 else 1 + 0.1 * v if "norm" in name and "weight" in name else 0.1 * v)


def text_model(hidden, mlp, vocabulary):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1)).eval()


def models(unet, vae, groups, sample):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=unet, layers_per_block=1, sample_size=sample, cross_attention_dim=24, attention_head_dim=(2, 4),
        use_linear_projection=True, norm_num_groups=groups, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()
    torch.manual_seed(0)
    return unet, AutoencoderKL(block_out_channels=vae, down_block_types=["DownEncoderBlock2D"] * 2,
                               up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=groups,
                               sample_size=2 * sample).eval()


def numbers_of_the_sheet():
    """Section 8.4 of text_to_image.md."""
    tokenizer = pathlib.Path("/tmp/tiny_sd_tokenizer")
    size = write_tokenizer(tokenizer, MERGES)
    text = text_model(24, 48, size)
    formula(text)
    unet, vae = models((32, 64), (16, 32), 8, 16)
    pipe = StableDiffusionPipeline(vae, text, CLIPTokenizer.from_pretrained(tokenizer), unet, DDIMScheduler(**SCHEDULER),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained("/tmp/tiny_sd")
    pipe.set_progress_bar_config(disable=True)
    ids = pipe.tokenizer(PROMPT, padding="max_length").input_ids
    with torch.no_grad():
        e = text(torch.tensor([ids])).last_hidden_state[0]
    print(ids[:8], len(ids), ids[-1], e[1, :4], e[76, -2:], (e ** 2).sum())
    for name, scheduler in [("ddim", pipe.scheduler), ("v", DDIMScheduler(**SCHEDULER, prediction_type="v_prediction")),
                            ("pndm", diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True))]:
        pipe.scheduler = scheduler
        latents = []
        image = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=3, guidance_scale=6.0, output_type="np",
                     generator=torch.Generator().manual_seed(0),
                     callback_on_step_end=lambda p, i, t, k: (latents.append(k["latents"]), k)[1]).images
        print(name, latents[-1][0, 0, 0, :3], (latents[-1] ** 2).sum(), image[-1, -3:, -3:, -1].flatten())


def half(model):
    """Rounds weights to f16."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    return model


def write_text_config(folder, config):
    """As transformers 4 wrote it: the numbers of special tokens mean nothing."""
    write_json(folder / "text_encoder/config.json", dict(
        architectures=["CLIPTextModel"], attention_dropout=0.0, bos_token_id=0, dropout=0.0, eos_token_id=2,
        hidden_act=config.hidden_act, hidden_size=config.hidden_size, initializer_factor=1.0, initializer_range=0.02,
        intermediate_size=config.intermediate_size, layer_norm_eps=1e-5, max_position_embeddings=77, model_type="clip_text_model",
        num_attention_heads=config.num_attention_heads, num_hidden_layers=config.num_hidden_layers, pad_token_id=1,
        projection_dim=config.hidden_size, torch_dtype="float16", transformers_version="4.22.0", vocab_size=config.vocab_size))


def write_scheduler_and_index(folder):
    """Those of Stable Diffusion 1.5, less the safety checker."""
    write_json(folder / "scheduler/scheduler_config.json", dict(
        _class_name="PNDMScheduler", _diffusers_version="0.6.0", beta_end=0.012, beta_schedule="scaled_linear",
        beta_start=0.00085, num_train_timesteps=1000, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
        trained_betas=None, clip_sample=False))
    write_json(folder / "model_index.json", dict(
        _class_name="StableDiffusionPipeline", _diffusers_version="0.35.0", feature_extractor=[None, None],
        image_encoder=[None, None], requires_safety_checker=False, safety_checker=[None, None], scheduler=["diffusers", "PNDMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"]))


def write_folder(folder):
    shutil.rmtree(folder, ignore_errors=True)
    size = write_tokenizer(folder / "tokenizer", MERGES)
    text = text_model(24, 48, size)
    formula(text)
    unet, vae = models((8, 16), (8, 16), 4, 8)
    with torch.no_grad():
        for n, p in unet.named_parameters():
            if "attn2" in n:  # or the text would hardly matter
                p.mul_(3)
    for part, model in dict(unet=unet, vae=vae).items():
        half(model).half().save_pretrained(folder / part)
    half(text)
    (folder / "text_encoder").mkdir()
    tensors = {"text_model." + n.removeprefix("text_model."): p.half().contiguous() for n, p in text.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "text_encoder/model.safetensors", metadata={"format": "pt"})
    write_text_config(folder, text.config)
    write_scheduler_and_index(folder)
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().rstrip("\n") + "\n")


def write_lora(folder, path):
    """Rank 4 for the attention of the UNet and of the text model, as the library's training scripts name them."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    generator, tensors = torch.Generator().manual_seed(77), {}
    for part, model, targets in [("unet", pipe.unet, ("to_q", "to_k", "to_v", "to_out.0")),
                                 ("text_encoder", pipe.text_encoder, ("q_proj", "k_proj", "v_proj", "out_proj"))]:
        for n, m in sorted(model.named_modules()):
            if n.endswith(targets):
                prefix = "unet." + n if part == "unet" else "text_encoder.text_model." + n.removeprefix("text_model.")
                tensors[prefix + ".lora_A.weight"] = torch.randn(4, m.in_features, generator=generator) / m.in_features ** 0.5
                tensors[prefix + ".lora_B.weight"] = torch.randn(m.out_features, 4, generator=generator) / 4
    safetensors.torch.save_file({n: v.half() for n, v in sorted(tensors.items())}, path, metadata={"format": "pt"})


def pictures():
    def of(h, w):
        c, y, x = numpy.meshgrid(range(3), range(h), range(w), indexing="ij")
        v = 128 + 90 * numpy.sin(0.5 * x + c) * numpy.cos(0.3 * y - c) + 30 * (x % 3 == c)
        return v.clip(0, 255).astype(numpy.uint8)
    mask = numpy.zeros((16, 16), numpy.uint8)
    mask[4:12, 8:16] = 255
    mask[12:14, 0:6] = 128
    mask[0:2, 0:6] = 127
    return of(16, 16), of(19, 37), mask


CASES = dict(
    pndm=dict(), ddim=dict(cls="DDIMScheduler"), ddim_v=dict(cls="DDIMScheduler", scheduler=dict(prediction_type="v_prediction")),
    ddim_eta=dict(cls="DDIMScheduler", eta=0.7), ddim_other_text=dict(cls="DDIMScheduler", prompt="blueé 42", negative_prompt=None),
    ddim_no_guidance=dict(cls="DDIMScheduler", guidance_scale=1.0), ddim_rescale=dict(cls="DDIMScheduler", guidance_rescale=0.7),
    ddim_long_text=dict(cls="DDIMScheduler", prompt="a red circle in a circle, " * 12),
    ddim_wide=dict(cls="DDIMScheduler", height=16, width=24),
    ddim_four=dict(cls="DDIMScheduler", prompt=[PROMPT, "green"], negative_prompt=[NEGATIVE, ""], num_images_per_prompt=2),
    ddim_generators=dict(cls="DDIMScheduler", num_images_per_prompt=2, seeds=[3, 1]),
    euler=dict(cls="EulerDiscreteScheduler"), euler_ancestral=dict(cls="EulerAncestralDiscreteScheduler"),
    dpm=dict(cls="DPMSolverMultistepScheduler"), unipc=dict(cls="UniPCMultistepScheduler"), ddpm=dict(cls="DDPMScheduler"),
    img2img=dict(cls="DDIMScheduler", task="img2img", strength=0.6, num_inference_steps=5),
    img2img_pndm=dict(task="img2img", strength=0.8, num_inference_steps=5),
    img2img_euler=dict(cls="EulerDiscreteScheduler", task="img2img", strength=0.6, num_inference_steps=5),
    img2img_resized=dict(cls="DDIMScheduler", task="img2img", strength=0.6, num_inference_steps=5, picture="large"),
    inpaint=dict(cls="DDIMScheduler", task="inpaint", strength=1.0),
    inpaint_part=dict(cls="DDIMScheduler", task="inpaint", strength=0.6, num_inference_steps=5),
    inpaint_pndm=dict(task="inpaint", strength=1.0),
    inpaint_euler=dict(cls="EulerDiscreteScheduler", task="inpaint", strength=1.0),
    lora=dict(cls="DDIMScheduler", lora=1.0), lora_half=dict(cls="DDIMScheduler", lora=0.5),
)


def draw(folder, dtype, task=None, cls=None, scheduler=None, seeds=(0,), picture=None, lora=None, **arguments):
    kind = dict(img2img=StableDiffusionImg2ImgPipeline, inpaint=StableDiffusionInpaintPipeline).get(task, StableDiffusionPipeline)
    more = dict(safety_checker=None, dtype=torch.float32)
    if cls:
        config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        more["scheduler"] = getattr(diffusers, cls).from_config(config, **(scheduler or {}))
    pipe = kind.from_pretrained(folder, **more)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(OUT, weight_name="tiny_sd_lora.safetensors")
        arguments["cross_attention_kwargs"] = dict(scale=lora)
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        model.to(dtype)
    if dtype == torch.float64:
        pipe.unet.time_proj = TimestepsF64(pipe.unet.config)
    if task:
        small, large, mask = pictures()
        arguments["image"] = Image.fromarray((large if picture else small).transpose(1, 2, 0))
        if task == "inpaint":
            arguments["mask_image"] = Image.fromarray(mask)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    latents = []
    arguments = dict(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=3, guidance_scale=6.0) | arguments
    image = pipe(**arguments, output_type="np", generator=generators if len(seeds) > 1 else generators[0],
                 callback_on_step_end=lambda p, i, t, k: (latents.append(k["latents"]), k)[1]).images
    return pipe, latents[-1].double(), torch.tensor(image).permute(0, 3, 1, 2).double()


def same_noise():
    """What is drawn in an f64 run is what an f32 run draws."""
    own = torch.randn
    torch.randn = lambda *a, dtype=None, **k: own(*a, **k, dtype=torch.float32).to(dtype or torch.float32)


def main():
    folder = OUT / "tiny_sd"
    write_folder(folder)
    write_lora(folder, OUT / "tiny_sd_lora.safetensors")
    same_noise()
    small, large, mask = pictures()
    tensors = {"in/picture": small, "in/picture_large": large, "in/mask": mask}
    tensors = {k: torch.tensor(v.astype(numpy.int32)) for k, v in tensors.items()}
    cases = {}
    for name, arguments in CASES.items():
        _, z32, image32 = draw(folder, torch.float32, **arguments)
        pipe, z64, image64 = draw(folder, torch.float64, **arguments)
        error = dict(latents=((z32 - z64).abs().max() / z64.abs().max()).item(), image=(image32 - image64).abs().max().item())
        error = {k: float(f"{v:.3g}") for k, v in error.items()}
        config = {k: v for k, v in json.loads(pipe.scheduler.to_json_string()).items() if k != "_diffusers_version"}
        cases[name] = dict(arguments) | dict(error=error, runs_as=config, timesteps=[float(t) for t in pipe.scheduler.timesteps])
        tensors |= {f"{name}/latents": z64, f"{name}/image": image64.float()}
        first = tensors.get("ddim/image")
        apart = (image64 - first).abs().max().item() if first is not None and first.shape == image64.shape else None
        print(name, error, list(image64.shape), z64.abs().max().item(), "from ddim:", apart, "range", image64.std().item(), flush=True)
    prompts = [PROMPT, NEGATIVE, "", "blueé 42", "green", CASES["ddim_long_text"]["prompt"]]
    for i, prompt in enumerate(prompts):
        ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        if i < 3:
            tensors[f"embeddings/{i}"] = embedding(folder, ids).float()
        tensors[f"ids/{i}"] = ids[0].to(torch.int32)
    save(OUT / "tiny_sd.safetensors", tensors, cases=cases, prompts=prompts)
    for path in sorted(p for p in OUT.glob("tiny_sd*/**/*") if p.is_file()) + sorted(OUT.glob("tiny_sd*.safetensors")):
        print(path.relative_to(OUT), path.stat().st_size)


def embedding(folder, ids):
    """Of f64."""
    model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).double().eval()
    with torch.no_grad():
        return model(ids).last_hidden_state[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    numbers_of_the_sheet() if args.large else main()
