"""Pictures of Stable Diffusion's pipelines without a text encoder: tests/golden/text_pipelines.json.

    python text_pipelines_golden.py

The models are the library's own, f32, as drawn with torch.manual_seed(0) before each; one embedding of one token stands for
the text, zeros for the negative one.  (a), (b) and their numbers are tests/pipelines/stable_diffusion_image_variation of the
library, and checked here.

    embedding [32], unet, unet9 (nine channels), vae: configurations
    picture     of img2img and inpainting: value[c,y,x] = ((1024c + 32y + x) * 37 mod 101) / 100, 32 x 32, c = 0, 1, 2
    cases       name; task txt2img, img2img, inpaint4, inpaint9 (the UNet's channels); scheduler: its configuration as it runs, after
                the overrides of the pipeline; size (of the picture); steps, guidance, eta, rescale; images (per prompt);
                seeds: one generator for all, or one for each image; strength; mask [y0,y1,x0,x1]: repainted, half open;
                timesteps as the loop runs; latents: the first four of the last image and the sum of squares of all; slice: the
                last image's [-3:, -3:, blue], in [0, 1]
    forward     UNet alone: x = randn(1,4,32,32; seed 0), t, embedding: first four, last three, squares
    odd         x = randn(1,4,9,7; seed 0): squares
    posterior   the VAE's of `picture`: mean and std [0,0,:4]
    variants    of the UNet (8 rows of UNet2DConditionModel's options), drawn with torch.manual_seed(0): config, labels, tensors,
                parameters; on x = randn(2,4,16,16; seed 1), text = randn(2,5,D; seed 2), t 7 and 900: y[0,0,0,:2], y[1,3,15,15],
                squares.  weights: the first element of some tensors of the first
    loss        of the first variant: x0 = randn(2,4,16,16; seed 1), noise = randn(..; seed 4), t 7 and 900, scaled_linear, gamma 5: by
                prediction type the loss of each image, snr, weights, the weighted loss, the norm of the gradients of the mean
                of both, and some elements of it
"""
import json
import pathlib

import numpy
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler,
                       PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
                       UNet2DConditionModel)

from unet_golden import config_json

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
E = [float(v) for v in """1.0718509 .1582215 -.9516384 -.3082153 -.6265844 -.3116243 -.176853 .2845635 .7323876 -.8215564 .6525562
-.0659203 -1.292745 1.0339978 .389511 .2212307 -1.712842 -.6062642 -1.6077139 .8935128 -.0402938 .4186955 1.7042592 -.3755845
-1.3848727 1.3911172 .4537748 -.4063406 .2513359 1.3303913 .5932775 1.2629527""".split()]
TABLES = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
USUAL = dict(**TABLES, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
PUBLISHED = {"a": [.5157, .5653, .4707, .4792, .5563, .4569, .5020, .4858, .4940],
             "b": [.6749, .5424, .5692, .5694, .6228, .6268, .5516, .5598, .5227]}
digits = lambda v: float(f"{v:.7g}")
several = lambda v: [digits(x) for x in v.flatten().tolist()]
randn = lambda seed, *shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
squares = lambda v: digits((v.double() ** 2).sum().item())


def unet_of(**config):
    torch.manual_seed(0)
    levels = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    return UNet2DConditionModel(**(dict(block_out_channels=(32, 64), layers_per_block=2, sample_size=32, cross_attention_dim=32)
                                   | levels | config)).eval()


def vae_of():
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2,
                         up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4).eval()


def changed(model):
    return {k: v for k, v in config_json(model).items() if k != "_diffusers_version"}


def picture():
    c, y, x = numpy.meshgrid(range(3), range(32), range(32), indexing="ij")
    return torch.tensor(((1024 * c + 32 * y + x) * 37 % 101) / 100).float()[None]


def cases(unet, unet9, vae):
    e = torch.tensor(E).view(1, 1, 32)
    ddim = lambda: DDIMScheduler(**USUAL)
    pndm = lambda: PNDMScheduler(**TABLES, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    euler = lambda: EulerDiscreteScheduler(**TABLES, steps_offset=1)

    def case(name, scheduler, task="txt2img", steps=5, guidance=6.0, eta=0.0, rescale=0.0, images=1, seeds=(0,), strength=None,
             mask=None, prompts=1, as_is=False):
        kinds = dict(txt2img=StableDiffusionPipeline, img2img=StableDiffusionImg2ImgPipeline)
        kind = kinds.get(task, StableDiffusionInpaintPipeline)
        pipe = kind(vae=vae, text_encoder=None, tokenizer=None, unet=unet9 if task == "inpaint9" else unet, scheduler=scheduler,
                    safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        if as_is:
            pipe.scheduler = scheduler.from_config(as_is)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        more = dict(guidance_rescale=rescale) if task == "txt2img" else dict(strength=strength, image=picture())
        if mask:
            y0, y1, x0, x1 = mask
            more["mask_image"] = torch.zeros(1, 1, 32, 32)
            more["mask_image"][:, :, y0:y1, x0:x1] = 1
            more |= dict(height=32, width=32)
        seen = []
        more["callback_on_step_end"] = lambda pipe, i, t, k: (seen.append((t.item(), k["latents"].clone())), k)[1]
        image = pipe(prompt_embeds=e.repeat(prompts, 1, 1), negative_prompt_embeds=torch.zeros(prompts, 1, 32), output_type="np",
                     generator=generators if len(seeds) > 1 else generators[0], num_inference_steps=steps, eta=eta,
                     guidance_scale=guidance, num_images_per_prompt=images, **more).images
        latents = seen[-1][1]
        slice_ = image[-1, -3:, -3:, -1]
        if name in PUBLISHED:
            assert numpy.abs(slice_.flatten() - numpy.array(PUBLISHED[name])).max() < 1e-4, slice_
        config = {k: v for k, v in json.loads(pipe.scheduler.to_json_string()).items() if k != "_diffusers_version"}
        found = dict(name=name, task=task, scheduler=config, size=list(image.shape[1:3]), prompts=prompts, steps=steps,
                     guidance=guidance, eta=eta, rescale=rescale, images=images, seeds=list(seeds), strength=strength, mask=mask,
                     timesteps=[digits(t) for t, _ in seen], latents=dict(first=several(latents[-1, 0, 0, :4]),
                                                                         squares=squares(latents)), slice=several(slice_))
        print(name, found["timesteps"], found["latents"], found["slice"], flush=True)
        return found

    plain = dict(PNDMScheduler(skip_prk_steps=True).config)
    mask = [8, 24, 16, 32]
    return [
        case("a", PNDMScheduler(skip_prk_steps=True), steps=2, as_is=plain),
        case("b", PNDMScheduler(skip_prk_steps=True), steps=2, as_is=plain, prompts=2),
        case("c", PNDMScheduler(skip_prk_steps=True), steps=2),
        case("ddim", ddim()), case("ddim guidance 1", ddim(), guidance=1.0), case("ddim guidance .5", ddim(), guidance=0.5),
        case("ddim eta 1", ddim(), eta=1.0), case("ddim two images", ddim(), images=2),
        case("ddim two generators", ddim(), images=2, seeds=(0, 1)),
        case("euler", euler()), case("lms", LMSDiscreteScheduler(**TABLES, steps_offset=1)),
        case("dpm++", DPMSolverMultistepScheduler(**TABLES, steps_offset=1)), case("pndm", pndm()),
        case("pndm rescale .7", pndm(), rescale=0.7),
        case("img2img ddim", ddim(), task="img2img", strength=0.6), case("img2img euler", euler(), task="img2img", strength=0.6),
        case("img2img pndm", pndm(), task="img2img", strength=0.8),
        case("inpaint", ddim(), task="inpaint4", strength=1.0, mask=mask),
        case("inpaint .6", ddim(), task="inpaint4", strength=0.6, mask=mask),
        case("inpaint euler .6", euler(), task="inpaint4", strength=0.6, mask=mask),
        case("inpaint nine", ddim(), task="inpaint9", strength=1.0, mask=mask),
        case("inpaint nine .6", ddim(), task="inpaint9", strength=0.6, mask=mask),
    ]


def variants():
    base = dict(layers_per_block=1, sample_size=16, cross_attention_dim=24, attention_head_dim=(2, 4), use_linear_projection=True,
                norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    x, t, found = randn(1, 2, 4, 16, 16), torch.tensor([7, 900]), {}
    for name, config, labels in [
            ("base", {}, None), ("conv", dict(use_linear_projection=False), None), ("heads 4", dict(attention_head_dim=4), None),
            ("only_cross_attention", dict(only_cross_attention=True), None),
            ("two layers", dict(transformer_layers_per_block=2), None),
            ("table", dict(num_class_embeds=10), torch.tensor([3, 7])),
            ("timestep", dict(class_embed_type="timestep"), torch.tensor([20.0, 30.0])),
            ("projection", dict(class_embed_type="projection", projection_class_embeddings_input_dim=6), randn(3, 2, 6)),
            ("text_proj", dict(encoder_hid_dim=12), None),
            ("scale_shift", dict(resnet_time_scale_shift="scale_shift"), None)]:
        model = unet_of(**base | config)
        text = randn(2, 2, 5, config.get("encoder_hid_dim", 24))
        with torch.no_grad():
            y = model(x, t, text, class_labels=labels).sample
        found[name] = dict(config=changed(model), labels=None if labels is None else labels.tolist(), text_width=text.shape[2],
                           tensors=len(list(model.parameters())), parameters=sum(p.numel() for p in model.parameters()),
                           y=several(torch.cat([y[0, 0, 0, :2], y[1, 3, 15, 15:]])), squares=squares(y))
        print(name, found[name]["tensors"], found[name]["parameters"], found[name]["y"], found[name]["squares"])
        if name == "base":
            state = model.state_dict()
            weights = {n: digits(state[n].flatten()[0].item()) for n in [
                "conv_in.weight", "down_blocks.0.attentions.0.proj_in.weight",
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "mid_block.attentions.0.proj_out.weight",
                "conv_out.weight"]}
            loss = losses(model, x, t, text)
    print(weights, loss)
    return found, weights, loss


def losses(model, x0, t, text):
    scheduler, noise, found = DDIMScheduler(**USUAL), randn(4, 2, 4, 16, 16), {}
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    snr = (a / (1 - a)).flatten()
    for kind in ["epsilon", "v_prediction"]:
        model.zero_grad()
        target = noise if kind == "epsilon" else scheduler.get_velocity(x0, noise, t)
        each = ((model(scheduler.add_noise(x0, noise, t), t, text).sample - target) ** 2).mean((1, 2, 3))
        each.mean().backward()
        w = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
        norm = sum((p.grad.double() ** 2).sum() for p in model.parameters()).sqrt().item()
        found[kind] = dict(each=several(each), snr=several(snr), weights=several(w), weighted=digits((w * each).mean().item()),
                           norm=digits(norm), to_k=several(model.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
                                                           .grad[0, :3]))
    return found


def main():
    unet, unet9, vae = unet_of(), unet_of(in_channels=9, out_channels=4), vae_of()
    with torch.no_grad():
        e = torch.tensor(E).view(1, 1, 32)
        y, zero = (unet(randn(0, 1, 4, 32, 32), 501, c).sample for c in (e, e * 0))
        odd = unet(randn(0, 1, 4, 9, 7), 501, e).sample
        posterior = vae.encode(2 * picture() - 1).latent_dist
    found, weights, loss = variants()
    book = dict(
        embedding=E, unet=changed(unet), unet9=changed(unet9), vae=changed(vae), cases=cases(unet, unet9, vae),
        forward=dict(t=501, first=several(y[0, 0, 0, :4]), last=several(y[0, 3, 31, 29:]), squares=squares(y),
                     zeros=dict(first=several(zero[0, 0, 0, :4]), squares=squares(zero))),
        odd=dict(shape=list(odd.shape), squares=squares(odd)),
        posterior=dict(mean=several(posterior.mean[0, 0, 0, :4]), std=several(posterior.std[0, 0, 0, :4])),
        variants=found, weights=weights, loss=loss)
    print(book["forward"], book["odd"], book["posterior"])
    parts = {k: json.dumps(v) for k, v in book.items()}
    parts["cases"] = "[\n" + ",\n".join(json.dumps(c) for c in book["cases"]) + "\n]"
    parts["variants"] = "{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in found.items()) + "\n}"
    path = OUT / "text_pipelines.json"
    path.write_text("{\n" + ",\n".join(f'"{k}": {v}' for k, v in parts.items()) + "\n}\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    main()
