"""Goldens of LoRA: tests/golden/lora/<spelling>.safetensors, five spellings of the same adapters, and what diffusers makes of them.

    python tools/reference/lora_golden.py

    peft, diffusers, oldest, kohya, kohya_ldm    alpha 4, rank 2 (kohya: as .alpha; the others: in the metadata)
    no_alpha                                     as diffusers, without metadata: alpha is the rank
    golden.json    layers {component: {layer: shape of its weight}} of the model; adapters {component.layer: [scale, A, B]},
                   as peft holds them after the library has read the file `diffusers`; the script checks that every other file gives
                   the same

Beside them tests/golden/embedding.pt, a textual inversion as A1111's program saves it, and state_dict.ckpt, tensors as training
programs save them.
"""
import json
import pathlib

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.integrations import peft as bridge
from transformers.utils import logging

# transformers 5.24 asks for a peft that is not published; 0.21.2 has all that is used here.
bridge.check_peft_version = lambda min_version: None
logging.set_verbosity_error()
GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden/lora"
RANK, ALPHA = 2, 4
UNET = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0",
        "mid_block.attentions.0.proj_in", "down_blocks.1.resnets.0.conv1"]
TEXT = ["encoder.layers.1.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj"]


def models():
    torch.manual_seed(0)
    blocks = dict(down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    unet = UNet2DConditionModel(block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=6,
                                attention_head_dim=2, norm_num_groups=4, **blocks)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=32, hidden_size=6, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                                        max_position_embeddings=8, bos_token_id=30, eos_token_id=31))
    return unet, text


def layers(model, prefix=""):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {prefix + name: list(m.weight.shape) for name, m in model.named_modules() if isinstance(m, kinds)}


def read(path):
    """Scale, A and B of each adapter, as the library holds them."""
    unet, text = models()
    state, alphas, metadata = Loader.lora_state_dict(path, unet_config=unet.config, return_lora_metadata=True)
    Loader.load_lora_into_unet(state, alphas, unet, adapter_name="a", metadata=metadata)
    Loader.load_lora_into_text_encoder(state, alphas, text, adapter_name="a", metadata=metadata)
    found = {}
    for component, model in (("unet", unet), ("text_encoder", text)):
        for name, module in model.named_modules():
            if hasattr(module, "lora_A"):
                a, b = (part["a"].weight.detach().flatten().tolist() for part in (module.lora_A, module.lora_B))
                found[f"{component}.{name}"] = [module.scaling["a"], a, b]
    return found


def main():
    GOLDEN.mkdir(exist_ok=True)
    unet, text = models()
    shapes = {"unet": layers(unet), "text_encoder": layers(text, "text_model.")}
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=UNET))
    text.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TEXT))
    generator = torch.Generator().manual_seed(1)
    for model in (unet, text):
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = torch.randn(p.shape, generator=generator).mul(64).round().div(64)
    of_unet, of_text = get_peft_model_state_dict(unet), get_peft_model_state_dict(text)
    keys = ("r", "lora_alpha", "target_modules")
    settings = [{key: getattr(m.peft_config["default"], key) for key in keys} for m in (unet, text)]
    metadata = [{key: sorted(v) if isinstance(v, set) else v for key, v in own.items()} for own in settings]

    def write(name, tensors, adapter=None):
        said = {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(adapter, indent=2, sort_keys=True)} if adapter else {})
        save_file({key: t.contiguous() for key, t in tensors.items()}, GOLDEN / f"{name}.safetensors", said)

    said = {f"{part}.{key}": value for part, own in zip(("unet", "text_encoder"), metadata) for key, value in own.items()}
    write("peft", {f"unet.{k}": v for k, v in of_unet.items()} | {f"text_encoder.{k}": v for k, v in of_text.items()}, said)
    # What the library's own training scripts call.
    ours = [convert_state_dict_to_diffusers(of_unet), convert_state_dict_to_diffusers(of_text)]
    StableDiffusionPipeline.save_lora_weights(GOLDEN, *ours, weight_name="diffusers.safetensors", unet_lora_adapter_metadata=metadata[0],
                                              text_encoder_lora_adapter_metadata=metadata[1])
    StableDiffusionPipeline.save_lora_weights(GOLDEN, *ours, weight_name="no_alpha.safetensors")
    oldest = {}
    for key, value in ours[0].items():
        if ".attn" in key:
            key = key.replace(".to_out.0.", ".to_out.").replace(".lora.", "_lora.").replace(".to_", ".processor.to_")
        oldest[f"unet.{key}"] = value
    write("oldest", oldest | {f"text_encoder.text_model.{k}": v for k, v in ours[1].items()}, said)
    kohya, ldm = {}, {}
    numbers = {"down_blocks_0_attentions_0": "input_blocks_1_1", "up_blocks_1_attentions_1": "output_blocks_3_1",
               "mid_block_attentions_0": "middle_block_1", "down_blocks_1_resnets_0_conv1": "input_blocks_3_0_in_layers_2"}
    for part, state in (("lora_unet_", of_unet), ("lora_te_text_model_", of_text)):
        for key, value in state.items():
            layer, end = key.split(".lora_")
            name = part + layer.replace(".", "_")
            alias = name
            for theirs, number in numbers.items():
                alias = alias.replace(theirs, number)
            for out, under in ((kohya, name), (ldm, alias)):
                out[f"{under}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
                out[f"{under}.alpha"] = torch.tensor(float(ALPHA))
    write("kohya", kohya)
    write("kohya_ldm", ldm)
    adapters = read(GOLDEN / "diffusers.safetensors")
    assert len(adapters) == len(UNET) + len(TEXT) and all(a[0] == ALPHA / RANK for a in adapters.values())
    for name in ("peft", "oldest", "kohya", "kohya_ldm"):
        assert read(GOLDEN / f"{name}.safetensors") == adapters, name
    without = read(GOLDEN / "no_alpha.safetensors")
    assert {k: v[1:] for k, v in without.items()} == {k: v[1:] for k, v in adapters.items()} and {v[0] for v in without.values()} == {1.0}
    adapters = {name.replace("text_encoder.", "text_encoder.text_model."): value for name, value in adapters.items()}
    (GOLDEN / "golden.json").write_text(json.dumps({"layers": shapes, "adapters": adapters}, sort_keys=True, separators=(",", ":")))
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(torch.arange(8.0).reshape(2, 4))}, "name": "cat",
                "step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None}, GOLDEN.parent / "embedding.pt")
    torch.save({"global_step": 875000, "pytorch-lightning_version": "1.4.2", "epoch": 3, "callbacks": {},
                "state_dict": {"w": torch.arange(3.0), "m.position_ids": torch.arange(4)[None]}}, GOLDEN.parent / "state_dict.ckpt")


if __name__ == "__main__":
    main()
