"""Golden of Stable Diffusion in one file: tests/golden/single_files.json.gz, what diffusers' converters make of each tensor's name.

    python tools/reference/single_golden.py

Per case: file {name in the file: shape}, and of unet, vae, text_encoder {name in the folder: [name in the file, first row, shape]}.
The names in the file follow CompVis' constructors (openaimodel.py, model.py) and OpenCLIP's; the script checks that the converted names
and shapes are those of diffusers' and transformers' own models. No weights are made: a tensor is its name and its shape.
"""
import gzip
import json
import pathlib

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reference
from transformers import CLIPTextConfig, CLIPTextModel

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden/single_files.json.gz"


class Named:
    """A tensor without numbers: where it comes from, its first row there, its shape."""

    def __init__(self, source, shape, row=0):
        self.source, self.shape, self.row = source, tuple(shape), row

    ndim = property(lambda self: len(self.shape))
    clone = detach = lambda self: self

    def __getitem__(self, at):
        at = at if isinstance(at, tuple) else (at,)
        shape, row = [], self.row
        for place, size in enumerate(self.shape):
            index = at[place] if place < len(at) else slice(None)
            if isinstance(index, slice):
                start, stop, _ = index.indices(size)
                shape.append(stop - start)
                row += start if place == 0 else 0
            else:
                assert index == 0 and size == 1
        return Named(self.source, shape, row)


def affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet(name, n, m, time):
    out = affine(f"{name}.in_layers.0", n) | affine(f"{name}.in_layers.2", m, n, 3, 3) | affine(f"{name}.emb_layers.1", m, time)
    out |= affine(f"{name}.out_layers.0", m) | affine(f"{name}.out_layers.3", m, m, 3, 3)
    return out | (affine(f"{name}.skip_connection", m, n, 1, 1) if n != m else {})


def transformer(name, c, context, linear):
    one = () if linear else (1, 1)
    out = affine(f"{name}.norm", c) | affine(f"{name}.proj_in", c, c, *one) | affine(f"{name}.proj_out", c, c, *one)
    b = f"{name}.transformer_blocks.0"
    for attn, width in (("attn1", c), ("attn2", context)):
        out |= {f"{b}.{attn}.to_q.weight": (c, c), f"{b}.{attn}.to_k.weight": (c, width), f"{b}.{attn}.to_v.weight": (c, width)}
        out |= affine(f"{b}.{attn}.to_out.0", c, c)
    out |= affine(f"{b}.ff.net.0.proj", 8 * c, c) | affine(f"{b}.ff.net.2", c, 4 * c)
    return out | affine(f"{b}.norm1", c) | affine(f"{b}.norm2", c) | affine(f"{b}.norm3", c)


def unet(widths, layers, attention, context, linear, inputs):
    time = 4 * widths[0]
    out = affine("time_embed.0", time, widths[0]) | affine("time_embed.2", time, time)
    out |= affine("input_blocks.0.0", widths[0], inputs, 3, 3)
    skips, c, i = [widths[0]], widths[0], 1
    for level, width in enumerate(widths):
        for _ in range(layers):
            out |= resnet(f"input_blocks.{i}.0", c, width, time)
            c = width
            if attention[level]:
                out |= transformer(f"input_blocks.{i}.1", c, context, linear)
            skips.append(c)
            i += 1
        if level + 1 < len(widths):
            out |= affine(f"input_blocks.{i}.0.op", c, c, 3, 3)
            skips.append(c)
            i += 1
    out |= resnet("middle_block.0", c, c, time) | transformer("middle_block.1", c, context, linear) | resnet("middle_block.2", c, c, time)
    i = 0
    for level in reversed(range(len(widths))):
        for j in range(layers + 1):
            out |= resnet(f"output_blocks.{i}.0", c + skips.pop(), widths[level], time)
            c, at = widths[level], 1
            if attention[level]:
                out |= transformer(f"output_blocks.{i}.1", c, context, linear)
                at = 2
            if level and j == layers:
                out |= affine(f"output_blocks.{i}.{at}.conv", c, c, 3, 3)
            i += 1
    return out | affine("out.0", c) | affine("out.2", 4, c, 3, 3)


def vae_resnet(name, n, m):
    out = affine(f"{name}.norm1", n) | affine(f"{name}.conv1", m, n, 3, 3) | affine(f"{name}.norm2", m) | affine(f"{name}.conv2", m, m, 3, 3)
    return out | (affine(f"{name}.nin_shortcut", m, n, 1, 1) if n != m else {})


def vae_middle(name, c):
    out = vae_resnet(f"{name}.block_1", c, c) | vae_resnet(f"{name}.block_2", c, c) | affine(f"{name}.attn_1.norm", c)
    for part in ("q", "k", "v", "proj_out"):
        out |= affine(f"{name}.attn_1.{part}", c, c, 1, 1)
    return out


def vae(widths, layers):
    top, last = widths[-1], len(widths) - 1
    out, c = affine("encoder.conv_in", widths[0], 3, 3, 3), widths[0]
    for level, width in enumerate(widths):
        for j in range(layers):
            out |= vae_resnet(f"encoder.down.{level}.block.{j}", c, width)
            c = width
        out |= affine(f"encoder.down.{level}.downsample.conv", c, c, 3, 3) if level < last else {}
    out |= vae_middle("encoder.mid", c) | affine("encoder.norm_out", c) | affine("encoder.conv_out", 8, c, 3, 3)
    out |= affine("decoder.conv_in", top, 4, 3, 3) | vae_middle("decoder.mid", top)
    for level in reversed(range(len(widths))):
        for j in range(layers + 1):
            out |= vae_resnet(f"decoder.up.{level}.block.{j}", c, widths[level])
            c = widths[level]
        out |= affine(f"decoder.up.{level}.upsample.conv", c, c, 3, 3) if level else {}
    out |= affine("decoder.norm_out", c) | affine("decoder.conv_out", 3, c, 3, 3)
    return out | affine("quant_conv", 8, 8, 1, 1) | affine("post_quant_conv", 4, 4, 1, 1)


def openclip(width, layers, vocabulary):
    out = {"positional_embedding": (77, width), "token_embedding.weight": (vocabulary, width), "text_projection": (width, width)}
    for i in range(layers):
        b = f"transformer.resblocks.{i}"
        out |= affine(f"{b}.ln_1", width) | affine(f"{b}.ln_2", width) | affine(f"{b}.attn.out_proj", width, width)
        out |= {f"{b}.attn.in_proj_weight": (3 * width, width), f"{b}.attn.in_proj_bias": (3 * width,)}
        out |= affine(f"{b}.mlp.c_fc", 4 * width, width) | affine(f"{b}.mlp.c_proj", width, 4 * width)
    return out | affine("ln_final", width)


def text_model(width, layers, vocabulary):
    with torch.device("meta"):
        config = CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, vocab_size=vocabulary,
                                num_attention_heads=max(width // 64, 1), max_position_embeddings=77)
        return CLIPTextModel(config)


def same(converted, model):
    """The converted names are the model's; transformers 5 leaves out the prefix of the text model."""
    mine = {name.removeprefix("text_model."): tuple(t.shape) for name, t in converted.items() if t is not None}
    theirs = {name.removeprefix("text_model."): tuple(t.shape) for name, t in model.state_dict().items()}
    assert mine == theirs, sorted(set(mine.items()) ^ set(theirs.items()))[:8]


def case(widths, layers, attention, context, linear, inputs, vae_widths, vae_layers, text):
    kind, text_width, text_layers, vocabulary = text
    file = {f"model.diffusion_model.{name}": shape for name, shape in unet(widths, layers, attention, context, linear, inputs).items()}
    file |= {f"first_stage_model.{name}": shape for name, shape in vae(vae_widths, vae_layers).items()}
    kept = text_layers - 1 if text_layers == 24 else text_layers
    encoder = text_model(text_width, kept, vocabulary)
    if kind == "openclip":
        file |= {f"cond_stage_model.model.{name}": shape for name, shape in openclip(text_width, text_layers, vocabulary).items()}
    else:
        file |= {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tuple(t.shape)
                 for name, t in encoder.state_dict().items()}
    tensors = {name: Named(name, shape) for name, shape in file.items()}
    with torch.device("meta"):
        blocks = dict(down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
                      up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)])
        net = UNet2DConditionModel(in_channels=inputs, block_out_channels=widths, layers_per_block=layers, cross_attention_dim=context,
                                   attention_head_dim=8, use_linear_projection=linear, norm_num_groups=32, **blocks)
        n = len(vae_widths)
        codec = AutoencoderKL(block_out_channels=vae_widths, layers_per_block=vae_layers, latent_channels=4, norm_num_groups=8,
                              down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n)
    made = {"unet": reference.convert_ldm_unet_checkpoint(tensors, dict(net.config)),
            "vae": reference.convert_ldm_vae_checkpoint(tensors, dict(codec.config))}
    if kind == "openclip":
        made["text_encoder"] = reference.convert_open_clip_checkpoint(encoder, tensors)
    else:
        made["text_encoder"] = reference.convert_ldm_clip_checkpoint(tensors)
    for name, model in (("unet", net), ("vae", codec), ("text_encoder", encoder)):
        same(made[name], model)
    return {"file": file} | {part: {name: [t.source, t.row, t.shape] for name, t in names.items()} for part, names in made.items()}


def main():
    full = dict(widths=(320, 640, 1280, 1280), layers=2, attention=(True, True, True, False), vae_widths=(128, 256, 512, 512), vae_layers=2)
    cases = {
        "sd1": case(**full, context=768, linear=False, inputs=4, text=("clip", 768, 12, 49408)),
        "sd2": case(**full, context=1024, linear=True, inputs=9, text=("openclip", 1024, 24, 49408)),
        "tiny_sd1": case((32, 64), 1, (True, False), 24, False, 4, (16, 32), 1, ("clip", 24, 2, 522)),
        "tiny_sd2": case((32, 64, 64), 3, (False, True, True), 24, True, 4, (16, 32, 32), 2, ("openclip", 24, 3, 522)),
    }
    assert sum(torch.Size(shape).numel() for _, _, shape in cases["sd1"]["unet"].values()) == 859_520_964
    text = json.dumps(cases, sort_keys=True, separators=(",", ":"))
    GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(GOLDEN.name, GOLDEN.stat().st_size, {name: len(c["file"]) for name, c in cases.items()})


if __name__ == "__main__":
    main()
