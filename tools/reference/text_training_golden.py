"""Training as in train_text_to_image.py, train_dreambooth.py, textual_inversion.py and with LoRA, on the tiny folder:
text_training.safetensors.

    python text_training_golden.py            # after tiny_sd.py

In f64 from the f32 values of inputs and weights; the alphas are f32 of the library; sinusoids as in unet_golden.py.
    in/picture [4,3,16,16] in [-1, 1]   in/posterior [4,4,8,8], the noise of the VAE's posterior   in/noise   in/t I32 [4]
    in/offset [4,4,1,1]   in/perturbation [4,4,8,8]   in/ids I32 [4,77]   in/word_ids I32 [4,77], of `word_captions`, in which the
    word <cat> stands for two tokens   in/word_rows [2,24], their rows
    f64/latents, after scaling   f64/embeddings [4,77,24]
Metadata `cases`:
    prediction, snr_gamma, offset (noise_offset), perturbation (input_perturbation)
    text         the text encoder is trained too
    prior        the first two pictures are instances, the last two of the class; loss = mean of those + prior * mean of these
    lora         the adapters of tiny_sd_lora.safetensors alone are trained, of both models, at this scale (alpha / rank)
    word         the rows of a new word of two tokens alone are trained, on the captions `word_captions`
    loss; each: the unweighted loss of each picture; norm: of all gradients; tensors: the number of trained tensors, n
    error        of f32: of loss, norm and the gradients as one vector (relative), of the parameters `after` (absolute)
<case>/grad [n,4] sum, sum of absolute values, first, last element of the gradient of each trained tensor: unet's, then
             text_encoder's with "text_model." in its names, each sorted by name
<case>/error_of [n]   the f32 error of each gradient, relative in the norm
<case>/after [n,4]    as grad, of the tensors themselves after `steps` steps of AdamW with the settings `adam`, on the same batch,
             gradients clipped to a norm of 1
"""
import json
import pathlib

import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from unet_golden import TimestepsF64, relative, save

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
FOLDER = OUT / "tiny_sd"
CAPTIONS = ["A red circle!", "green", "blue", ""]
WORD_CAPTIONS = ["a photo of a <cat>", "A rendering of my<CAT>!", "the <cat> and the <cat>", "blue"]
ADAM = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-3, weight_decay=1e-2)
CASES = dict(epsilon=dict(), v=dict(prediction="v_prediction"), snr=dict(snr_gamma=5.0),
             v_snr=dict(prediction="v_prediction", snr_gamma=5.0), offset=dict(offset=0.1, perturbation=0.2), text=dict(text=True),
             prior=dict(text=True, prior=0.7), lora=dict(lora=0.5), word=dict(word=True))


def inputs():
    randn = lambda seed, *shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    tokenizer.add_tokens(["<cat>", "<cat>_1"])
    # As the script and the library's pipelines have it.
    both = [caption.replace("<cat>", "<cat> <cat>_1").replace("<CAT>", "<cat> <cat>_1") for caption in WORD_CAPTIONS]
    word_ids = tokenizer(both, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return dict(word_ids=word_ids, word_rows=randn(6, 2, 24) / 5, picture=randn(1, 4, 3, 16, 16).clamp(-1, 1), posterior=randn(2, 4, 4, 8, 8), noise=randn(3, 4, 4, 8, 8),
                t=torch.tensor([10, 150, 80, 999]), offset=randn(4, 4, 4, 1, 1), perturbation=randn(5, 4, 4, 8, 8), ids=ids)


def adapt(model, part, adapters, scale, dtype):
    """Freezes a model and gives it the adapters of a part of a file; their names and values."""
    model.requires_grad_(False)
    found = []
    for name, module in model.named_modules():
        prefix = "unet." + name if part == "unet" else "text_encoder.text_model." + name.removeprefix("text_model.")
        if prefix + ".lora_A.weight" in adapters:
            down, up = (torch.nn.Parameter(adapters[f"{prefix}.lora_{x}.weight"].to(dtype)) for x in "AB")
            own = module.forward
            module.forward = lambda x, *_, own=own, down=down, up=up: own(x) + scale * (x @ down.T @ up.T)
            found += [(f"{prefix}.lora_A.weight", down), (f"{prefix}.lora_B.weight", up)]
    return found


def run(dtype, given, prediction="epsilon", snr_gamma=None, offset=0.0, perturbation=0.0, text=False, prior=None,
        lora=None, word=False, steps=2):
    load = lambda kind, part: kind.from_pretrained(FOLDER, subfolder=part, torch_dtype=torch.float32).to(dtype)
    unet, vae, encoder = load(UNet2DConditionModel, "unet"), load(AutoencoderKL, "vae"), load(CLIPTextModel, "text_encoder")
    unet.train(), vae.requires_grad_(False), encoder.requires_grad_(text)
    if dtype == torch.float64:
        unet.time_proj = TimestepsF64(unet.config)
    g = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    scheduler = DDPMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    named = [("unet." + n, p) for n, p in sorted(unet.named_parameters())]
    if text:
        named += [("text_encoder.text_model." + n, p) for n, p in
                  sorted((n.removeprefix("text_model."), p) for n, p in encoder.named_parameters())]
    if lora:
        adapters = safetensors.torch.load_file(OUT / "tiny_sd_lora.safetensors")
        named = [pair for part, model in [("unet", unet), ("text_encoder", encoder)]
                 for pair in sorted(adapt(model, part, adapters, lora, dtype), key=lambda pair: pair[0])]
        assert len(named) == len(adapters)
    if word:
        # The script trains the whole table and restores all other rows, which is the same: AdamW knows elements alone.
        table, rows = encoder.get_input_embeddings(), torch.nn.Parameter(g["word_rows"].clone())
        table.forward = lambda ids: torch.nn.functional.embedding(ids, torch.cat([table.weight, rows]))
        unet.requires_grad_(False)
        named, g["ids"] = [("text_encoder.text_model.embeddings.word.weight", rows)], g["word_ids"]
    optimizer = torch.optim.AdamW([p for _, p in named], **ADAM)
    posterior = vae.encode(g["picture"]).latent_dist
    latents = (posterior.mean + posterior.std * g["posterior"]) * vae.config.scaling_factor
    found = None
    for _ in range(steps):
        embeddings = encoder(g["ids"]).last_hidden_state
        noise = g["noise"] + offset * g["offset"]
        noisy = scheduler.add_noise(latents, noise + perturbation * g["perturbation"], g["t"])
        target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, g["t"])
        each = ((unet(noisy, g["t"], embeddings).sample - target) ** 2).mean((1, 2, 3))
        loss = each.mean()
        if snr_gamma:
            a = scheduler.alphas_cumprod[g["t"]].to(dtype)
            snr = a / (1 - a)
            loss = (snr.clamp(max=snr_gamma) / (snr if prediction == "epsilon" else snr + 1) * each).mean()
        if prior:
            loss = each[:2].mean() + prior * each[2:].mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], float("inf"))
        if found is None:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in named]
            found = dict(latents=latents, embeddings=embeddings.detach(), loss=loss.item(), each=each.tolist(), norm=norm.item(),
                         grads=[v.double() for v in grads], names=[n for n, _ in named])
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return found | dict(after=[p.detach().double() for _, p in named])


def main():
    given, cases = inputs(), {}
    tensors = {f"in/{k}": v if v.is_floating_point() else v.to(torch.int32) for k, v in given.items()}
    four = lambda all: torch.stack([torch.stack([v.sum(), v.abs().sum(), v.flatten()[0], v.flatten()[-1]]) for v in all]).float()
    for name, case in CASES.items():
        f32, f64 = run(torch.float32, given, **case), run(torch.float64, given, **case)
        largest = max(v.norm() for v in f64["grads"])
        error = [relative(a, b) if b.norm() > 1e-10 * largest else 0.0 for a, b in zip(f32["grads"], f64["grads"])]
        after = max((a - b).abs().max().item() for a, b in zip(f32["after"], f64["after"]))
        off = lambda k: abs(f32[k] / f64[k] - 1)
        flat = lambda v: torch.cat([x.flatten() for x in v])
        cases[name] = dict(case) | dict(
            loss=f64["loss"], each=f64["each"], norm=f64["norm"], steps=2, adam=ADAM, tensors=len(f64["names"]),
            error=dict(loss=off("loss"), norm=off("norm"), grads=relative(flat(f32["grads"]), flat(f64["grads"])), after=after))
        tensors |= {f"{name}/grad": four(f64["grads"]), f"{name}/error_of": torch.tensor(error), f"{name}/after": four(f64["after"])}
        if name == "epsilon":
            tensors |= {"f64/latents": f64["latents"].float(), "f64/embeddings": f64["embeddings"].float()}
        print(name, f64["loss"], f64["each"], f64["norm"], cases[name]["error"], max(error))
    path = OUT / "text_training.safetensors"
    save(path, tensors, cases=cases, captions=CAPTIONS, word_captions=WORD_CAPTIONS)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    main()
