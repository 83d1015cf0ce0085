"""What null means in the files that transformers and peft read: for null_golden.py.

texts: config.json of a CLIPTextModel, alone and inside a whole CLIP, as in the models of null_golden.py; a key inside is
"text_config.<key>".

tokenizers: folders of `files`, with the vocabulary of tiny_sd where they have none, and for each "<file>/<key>" what null
there makes of TEXTS, as a pipeline asks for them (begun, ended, filled up to the length that the tokenizer says): "error",
"same" for the same tokens, or the "ids".

adapters: settings of two of a U-Net's adapters, in the metadata of a file or (peft) in adapter_config.json beside it, and for
each key what null makes of their scales: "error", "same" or the "scales".
"""
import json
import pathlib
import shutil
import tempfile

import peft
import torch
import transformers
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import formats
import lora_golden

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden"
TEXTS = ["A red!", "\u00e9 42", "", "<|ENDOFTEXT|>'s!!", "a<Cat>!\U0001f408", "a b c d e f g h i j k l m n"]
VOCABULARY = ["vocab.json", "merges.txt"]
transformers.utils.logging.set_verbosity_error()


def said(error, at="FOLDER"):
    return {"error": f"{type(error).__name__}: {error}".replace(str(at), "FOLDER").split("\n")[0][:60]}


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False))


def with_null(value, path):
    """A copy with null in the place of a key, or of a key inside."""
    key, _, inner = path.partition(".")
    return value | {key: with_null(value[key], inner) if inner else None}


def texts():
    small = dict(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, projection_dim=8,
                 max_position_embeddings=7, bos_token_id=9, eos_token_id=10, pad_token_id=10)
    old = json.loads((GOLDEN / "tiny_sd/text_encoder/config.json").read_text())
    full = lambda config: json.loads(config.to_json_string(use_diff=False))
    alone = old | full(CLIPTextConfig(**small)) | {"use_attention_mask": False}
    whole = full(CLIPConfig(text_config=small, vision_config=dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)))
    whole = {key: whole[key] for key in whole if key != "vision_config"} | {"use_attention_mask": False}
    twice = {"model_type": "clip", "text_config": alone, "text_config_dict": alone | {"layer_norm_eps": 0.1}}
    inside = [f"text_config.{key}" for key in whole["text_config"]]
    for config, keys in [(alone, alone), (whole, [*whole, *inside]), (twice, twice)]:
        with tempfile.TemporaryDirectory() as at:
            at = pathlib.Path(at)
            formats.vivid(CLIPTextModel(CLIPTextConfig(**small)), 1).save_pretrained(at)

            def answer(config):
                write(at / "config.json", config)
                model = CLIPTextModel.from_pretrained(at, dtype=torch.float32).eval()
                assert not getattr(model.config, "use_attention_mask", None), "the pipelines look for it"
                with torch.no_grad():
                    return model(torch.tensor([[9, 3, 3, 0, 10, 10, 10]])).last_hidden_state

            def meaning(key):
                try:
                    got = answer(with_null(config, key))
                except Exception as error:
                    return said(error, at)
                return {"same": True} if torch.equal(got, answer(config)) else {"other": True}

            yield {"config": config, "nulls": {key: meaning(key) for key in keys}}


def folders():
    token = lambda content, **more: dict(content=content, lstrip=False, normalized=True, rstrip=False, single_word=False, **more)
    with tempfile.TemporaryDirectory() as at:
        old = pathlib.Path(at) / "old"
        shutil.copytree(GOLDEN / "tiny_sd/tokenizer", old)
        write(old / "added_tokens.json", {"<cat>": 522})
        config = json.loads((old / "tokenizer_config.json").read_text()) | {"model_max_length": 12}
        more = {"add_bos_token": False, "additional_special_tokens": ["!"], "clean_up_tokenization_spaces": False}
        write(old / "tokenizer_config.json", config | more)
        write(old / "special_tokens_map.json", json.loads((old / "special_tokens_map.json").read_text()) | {"pad_token": "!"})
        yield old
        only = pathlib.Path(at) / "config_only"
        shutil.copytree(old, only)
        (only / "special_tokens_map.json").unlink()
        write(only / "tokenizer_config.json", config | more | {"pad_token": "!", "eos_token": "!"})
        yield only
        newer = pathlib.Path(at) / "newer"
        shutil.copytree(GOLDEN / "tiny_sd/tokenizer", newer)
        (newer / "special_tokens_map.json").unlink()
        decoder = {"520": token("<|startoftext|>", special=True), "521": token("<|endoftext|>", special=True),
                   "522": token("<cat>", special=False)}
        write(newer / "tokenizer_config.json", config | more | {"pad_token": "!", "added_tokens_decoder": decoder})
        yield newer
        whole = pathlib.Path(at) / "whole"
        CLIPTokenizer.from_pretrained(newer).save_pretrained(whole)
        yield whole


def ids(path):
    tokenizer = CLIPTokenizer.from_pretrained(path)
    return tokenizer(TEXTS, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids


def paths_in(file, value):
    """The keys of a file, and those of the model of a whole one."""
    for key, inner in value.items():
        yield key
        if file == "tokenizer.json" and key == "model":
            yield from (f"{key}.{k}" for k in inner)


def tokenizers():
    for path in folders():
        files = {file.name: json.loads(file.read_text()) for file in sorted(path.iterdir()) if file.name not in VOCABULARY}
        wanted, nulls = ids(path), {}
        for file, value in files.items():
            for key in paths_in(file, value):
                write(path / file, with_null(value, key))
                try:
                    got = ids(path)
                    nulls[f"{file}/{key}"] = {"same": True} if got == wanted else {"ids": got}
                except BaseException as error:  # tokenizers panics
                    nulls[f"{file}/{key}"] = said(error, path)
                write(path / file, value)
        yield {"files": files, "texts": TEXTS, "ids": wanted, "nulls": nulls}


def scales(settings, by_part):
    unet, _ = lora_golden.models()
    tensors = {key: value for key, value in load_file(GOLDEN / "lora/peft.safetensors").items() if key.startswith("unet.")}
    with tempfile.TemporaryDirectory() as at:
        at = pathlib.Path(at)
        if by_part:
            named = {f"unet.{key}": value for key, value in settings.items()}
            save_file(tensors, at / "a.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(named)})
            read = StableDiffusionPipeline.lora_state_dict
            state, alphas, metadata = read(at / "a.safetensors", unet_config=unet.config, return_lora_metadata=True)
            StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, adapter_name="default", metadata=metadata)
            model = unet
        else:
            own = {key.replace("unet.", "base_model.model.", 1): value for key, value in tensors.items()}
            save_file(own, at / "adapter_model.safetensors", {"format": "pt"})
            write(at / "adapter_config.json", settings)
            model = PeftModel.from_pretrained(unet, at).base_model.model
        found = {name: module.scaling["default"] for name, module in model.named_modules() if hasattr(module, "scaling")}
        # A pipeline answers with them.
        for module in model.modules():
            if hasattr(module, "lora_A"):
                wide = next(iter(module.lora_A.values())).weight.shape[1]
                with torch.no_grad():
                    module(torch.zeros(1, wide, 3, 3) if isinstance(module, peft.tuners.lora.Conv2d) else torch.zeros(1, wide))
        return [found[name] for name in sorted(found)]


def adapters():
    ranks = {"proj_in": 2, "to_q": 2, "to_out.0": 2, "conv1": 2}
    settings = LoraConfig(r=1, lora_alpha=3, target_modules=lora_golden.UNET, rank_pattern=ranks, alpha_pattern={"to_q": 8},
                          use_rslora=True, peft_type="LORA").to_dict()
    settings = json.loads(json.dumps(settings, default=sorted))
    plain = {"r": 2, "lora_alpha": 3, "target_modules": lora_golden.UNET, "rank_pattern": {"to_q": 2}, "peft_type": "LORA"}
    for by_part, settings in [(True, settings), (False, settings), (True, plain), (False, plain)]:
        wanted, nulls = scales(settings, by_part), {}
        for key in settings:
            try:
                got = scales(settings | {key: None}, by_part)
                nulls[key] = {"same": True} if got == wanted else {"scales": got}
            except Exception as error:
                nulls[key] = said(error)
        yield {"by_part": by_part, "settings": settings, "scales": wanted, "nulls": nulls}

