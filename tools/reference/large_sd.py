"""A folder of Stable Diffusion's full size with random weights of f16 (2.1 GB; with --two of Stable Diffusion 2, 2.6 GB), never
committed: for time and memory by hand.

    pip download --no-deps clip-anytorch==2.6.0 && unzip clip_anytorch-*.whl       # MIT; the vocabulary
    python tools/reference/large_sd.py OUT clip/bpe_simple_vocab_16e6.txt.gz [--two] [--seed N]

The tokenizer, the configurations, names and shapes are those of the published folders; weights are N(0, 0.02), norms 1 and 0.

OUT/answers.json: what PyTorch's f32 answers, each time twice (oneDNN on and off), as [first four, squares]: `text`, the embeddings of
"a photo of a cat" [1,77,D] from token 1 on; `unet` of x = randn(1,4,16,16; seed 7), t 501 and these; `decoder` of
randn(1,4,16,16; seed 8); `encoder`, mean of randn(1,3,64,64; seed 9).
"""
import argparse
import gzip
import hashlib
import pathlib

import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import tiny_sd

VOCABULARY = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
CROSS, UP = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
COUNTS = {False: (859_520_964, 123_060_480), True: (865_910_724, 340_387_840)}


def weights(model, generator, prefix=""):
    """Of a model on the meta device."""
    tensors = {}
    for name, p in model.state_dict().items():
        name = prefix + name.removeprefix(prefix)
        if p.ndim == 1 or "norm" in name:
            v = torch.full(p.shape, float("norm" in name and name.endswith("weight")))
        else:
            v = torch.randn(p.shape, generator=generator) * 0.02
        tensors[name] = v.half()
    return tensors


def answers(out):
    randn = lambda seed, *shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    some = lambda v: [v.flatten()[:4].tolist(), (v.double() ** 2).sum().item()]
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    ids = torch.tensor([tokenizer("a photo of a cat", padding="max_length", max_length=77).input_ids])
    found = dict(text=[], unet=[], decoder=[], encoder=[])
    load = lambda kind, part: kind.from_pretrained(out, subfolder=part, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        model = load(CLIPTextModel, "text_encoder")
        text = model(ids).last_hidden_state
        for on in (True, False):
            with torch.backends.mkldnn.flags(enabled=on):
                found["text"].append(some(model(ids).last_hidden_state[:, 1:]))
        model = load(UNet2DConditionModel, "unet")
        for on in (True, False):
            with torch.backends.mkldnn.flags(enabled=on):
                found["unet"].append(some(model(randn(7, 1, 4, 16, 16), 501, text).sample))
        model = load(AutoencoderKL, "vae")
        for on in (True, False):
            with torch.backends.mkldnn.flags(enabled=on):
                found["decoder"].append(some(model.decode(randn(8, 1, 4, 16, 16)).sample))
                found["encoder"].append(some(model.encode(randn(9, 1, 3, 64, 64)).latent_dist.mean))
    tiny_sd.write_json(out / "answers.json", dict(ids=ids[0].tolist()) | found)
    print(ids[0, :9].tolist(), found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("vocabulary", type=pathlib.Path)
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, two, generator = args.out, args.two, torch.Generator().manual_seed(args.seed)

    data = args.vocabulary.read_bytes()
    assert hashlib.sha256(data).hexdigest() == VOCABULARY, "another vocabulary"
    merges = gzip.decompress(data).decode().split("\n")[1:48_895]
    size = tiny_sd.write_tokenizer(out / "tokenizer", merges, pad="!" if two else "<|endoftext|>")
    assert size == 49_408

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=1024 if two else 768, use_linear_projection=two,
                                    attention_head_dim=[5, 10, 20, 20] if two else 8)
        vae = AutoencoderKL(sample_size=512, block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4,
                            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
        text = CLIPTextModel(CLIPTextConfig(
            hidden_size=1024 if two else 768, intermediate_size=4096 if two else 3072, num_hidden_layers=23 if two else 12,
            num_attention_heads=16 if two else 12, hidden_act="gelu" if two else "quick_gelu"))
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(unet), count(text)) == COUNTS[two], (count(unet), count(text))

    for part, model in dict(unet=unet, vae=vae).items():
        model.save_config(out / part)
        safetensors.torch.save_file(weights(model, generator), out / part / "diffusion_pytorch_model.safetensors",
                                    metadata={"format": "pt"})
    tensors = weights(text, generator, "text_model.")
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    (out / "text_encoder").mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, out / "text_encoder/model.safetensors", metadata={"format": "pt"})
    tiny_sd.write_text_config(out, text.config)
    tiny_sd.write_scheduler_and_index(out)
    answers(out)
    print(out, sum(p.stat().st_size for p in out.rglob("*") if p.is_file()), "bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
