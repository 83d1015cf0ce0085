"""What null means in the files that the libraries read: tests/golden/nulls.json.

models: small configurations of each class with every key written out, and for each key what the library makes of null
there: "error" where it raises when it builds the model, asks it or takes a pipeline's step with it; "default" where null
is the class's own default; "same" with the value by which the model gives the same answers with the same weights; "other"
where none of those tried does.

pipelines: the tiny pipelines of formats.py, tiny_sd.py and a DiTPipeline with an entry of their index set to null, or to
lists and objects with nulls: "error" where the library raises when it loads them or draws a picture, "same" for the same
picture, or "other".

texts, tokenizers, adapters: see null_files.py.
"""
import inspect
import json
import pathlib
import shutil
import tempfile

import diffusers
import torch

import folders
import formats
import null_files

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden"
LEVELS = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
TEXT = dict(down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
DIT = dict(num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=6, num_layers=1, sample_size=6, patch_size=2,
           num_embeds_ada_norm=3, norm_eps=0.1)
BASE = dict(sample_size=8, layers_per_block=1, norm_num_groups=2, block_out_channels=[4, 6])
MODELS = [
    ("UNet2DModel", dict(attention_head_dim=2, down_block_types=["DownBlock2D", "AttnDownBlock2D"],
                         up_block_types=["AttnUpBlock2D", "UpBlock2D"], **BASE)),
    ("UNet2DModel", dict(attention_head_dim=2, down_block_types=["DownBlock2D", "AttnDownBlock2D"], num_train_timesteps=70,
                         up_block_types=["AttnUpBlock2D", "UpBlock2D"], time_embedding_type="learned", **BASE)),
    ("AutoencoderKL", dict(latent_channels=2, **LEVELS, **BASE)),
    ("VQModel", dict(latent_channels=3, vq_embed_dim=2, num_vq_embeddings=19, **LEVELS, **BASE)),
    # As in Stable Diffusion 1 and 2, and what else sees a text.
    ("UNet2DConditionModel", dict(attention_head_dim=2, cross_attention_dim=6, **TEXT, **BASE)),
    ("UNet2DConditionModel", dict(attention_head_dim=[1, 2], cross_attention_dim=6, use_linear_projection=True, upcast_attention=True,
                                  num_class_embeds=5, **TEXT, **BASE)),
    ("UNet2DConditionModel", dict(attention_head_dim=2, encoder_hid_dim=5, encoder_hid_dim_type="text_proj", cross_attention_dim=6,
                                  class_embed_type="projection", projection_class_embeddings_input_dim=3, time_embedding_dim=10,
                                  num_class_embeds=5, only_cross_attention=[True, False], **TEXT, **BASE)),
    ("DiTTransformer2DModel", DIT),
    ("Transformer2DModel", dict(activation_fn="gelu-approximate", norm_type="ada_norm_zero", norm_elementwise_affine=False,
                                attention_bias=True, interpolation_scale=1.0, **DIT)),
]
DITS = ["DiTTransformer2DModel", "Transformer2DModel"]
WORDS = ["default", "conv", "group", "silu", "positional", "UNetMidBlock2D"]


def conditions(config):
    """Times, texts and classes of three images."""
    width = config.encoder_hid_dim or config.cross_attention_dim or 6
    text = torch.randn(3, 5, width if isinstance(width, int) else width[0])
    if config.class_embed_type == "projection":
        return torch.tensor([1, 20, 60]), text, torch.randn(3, config.projection_class_embeddings_input_dim)
    return torch.tensor([1, 20, 60]), text, torch.tensor([3, 1, 3])  # passed over where there are none


def answers(cls, config, weights=None):
    """The model's state, and what it says to a question; both of a seed."""
    model = cls.from_config(config)
    if weights is None:
        formats.vivid(model, 1)
    else:
        model.load_state_dict(weights)
    model = model.eval()
    with torch.no_grad():
        if cls.__name__ in DITS:
            torch.manual_seed(7)
            x, t, labels = torch.randn(3, model.config.in_channels, 6, 6), torch.tensor([1, 20, 60]), torch.tensor([1, 3, 1])
            return model.state_dict(), [model(x, timestep=t, class_labels=labels).sample]
        x, t, labels = folders.question(model, 7)
        if cls.__name__ == "UNet2DConditionModel":
            return model.state_dict(), [model(x, *conditions(model.config)).sample]
        if "UNet" in cls.__name__:
            said = [model(x, t, class_labels=labels).sample]
        elif cls.__name__ == "VQModel":
            said = [model.encode(x).latents, model(x).sample]
        else:
            said = [model.encode(x).latent_dist.mode(), model(x).sample]
        # LDMPipeline divides by it.
        said.append(said[-1] / model.config.get("scaling_factor", 1))
    return model.state_dict(), said


def meaning(cls, config, key):
    try:
        weights, wanted = answers(cls, config | {key: None})
    except Exception as error:
        return null_files.said(error)
    default = inspect.signature(cls.__init__).parameters[key].default
    if default is None:
        return {"default": True}
    for value in [False, True] if isinstance(default, bool) else [default, config[key]] + WORDS:
        try:
            _, said = answers(cls, config | {key: value}, weights)
        except Exception:
            continue
        if all(torch.equal(a, b) for a, b in zip(said, wanted)):
            return {"same": value}
    return {"other": True}


def model(name, options):
    cls = getattr(diffusers, name)
    config = json.loads(cls(**options).to_json_string())
    return {"config": config, "nulls": {key: meaning(cls, config, key) for key in config if not key.startswith("_")}}


def picture(folder):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"StableDiffusionPipeline": {"prompt": "A red circle!"}, "DiTPipeline": {"class_labels": [1]}}
    more = dict(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np")
    return torch.from_numpy(pipeline(**asked.get(type(pipeline).__name__, {}), **more).images)


def tiny_dit(folder):
    dit = formats.vivid(diffusers.DiTTransformer2DModel(**DIT | dict(num_embeds_ada_norm=1000)), 1)
    vae = formats.vivid(diffusers.AutoencoderKL(latent_channels=3, **LEVELS, **BASE), 1)
    diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler(), id2label={0: "a", 1: "b, c"}).save_pretrained(folder)


def pipelines():
    lists = [None, [None, None], [None, "UNet2DModel"], ["diffusers", None]]
    parts = ["scheduler", "unet", "vae", "text_encoder", "tokenizer"]
    extras = ["safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "force_zeros"]
    dit = {key: lists for key in ["_class_name", "scheduler", "transformer", "vae"]}
    dit["id2label"] = [None, {"0": None}, {"0": "a", "1": None}]
    with tempfile.TemporaryDirectory() as made:
        tiny_dit(pathlib.Path(made) / "tiny_dit")
        for name, keys in [("tiny_ddpm", None), ("tiny_ldm", None), ("tiny_sd", ["_class_name", *parts, *extras]), ("tiny_dit", dit)]:
            keys = keys or ["_class_name", "scheduler", "unet", "vqvae", "extra"]
            source = pathlib.Path(made if name == "tiny_dit" else GOLDEN) / name
            whole = json.loads((source / "model_index.json").read_text())
            for key, value in [(key, value) for key in keys for value in (keys[key] if isinstance(keys, dict) else lists)]:
                with tempfile.TemporaryDirectory() as at:
                    shutil.copytree(source, at, dirs_exist_ok=True)
                    (pathlib.Path(at) / "model_index.json").write_text(json.dumps(whole | {key: value}))
                    found = {"pipeline": name, "key": key, "value": value}
                    try:
                        found |= {"same": True} if torch.equal(picture(at), picture(source)) else {"other": True}
                    except Exception as error:
                        found |= null_files.said(error, at)
                    # A DiT is made anew by the script, and denoir reads its index alone.
                    yield found | ({"index": whole} if name == "tiny_dit" else {})


def main():
    diffusers.utils.logging.set_verbosity_error()
    lists = {"models": [model(*m) for m in MODELS], "pipelines": list(pipelines()), "texts": list(null_files.texts()),
             "tokenizers": list(null_files.tokenizers()), "adapters": list(null_files.adapters())}
    text = ",\n".join(f'"{name}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]" for name, cases in lists.items())
    out = GOLDEN / "nulls.json"
    out.write_text("{" + text + "}\n")
    swept = {name: sum(len(case.get("nulls", "1")) for case in cases) for name, cases in lists.items()}
    print(f"{out}: {swept}, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
