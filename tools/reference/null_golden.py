"""What null means in a model's config.json and in a model_index.json: tests/golden/nulls.json.

models: small configurations of each class with every key written out, and for each key what the library makes of null
there: "error" where it raises when it builds the model, asks it or takes a pipeline's step with it; "default" where null
is the class's own default; "same" with the value by which the model gives the same answers with the same weights; "other"
where none of those tried does.

pipelines: the two tiny pipelines of formats.py with an entry of their index set to null, or to lists with nulls: "error"
where the library raises when it loads them or draws a picture, "same" for the same picture, or "other".
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

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden"
LEVELS = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
BASE = dict(sample_size=8, layers_per_block=1, norm_num_groups=2, block_out_channels=[4, 6])
MODELS = [
    ("UNet2DModel", dict(attention_head_dim=2, down_block_types=["DownBlock2D", "AttnDownBlock2D"],
                         up_block_types=["AttnUpBlock2D", "UpBlock2D"], **BASE)),
    ("UNet2DModel", dict(attention_head_dim=2, down_block_types=["DownBlock2D", "AttnDownBlock2D"], num_train_timesteps=70,
                         up_block_types=["AttnUpBlock2D", "UpBlock2D"], time_embedding_type="learned", **BASE)),
    ("AutoencoderKL", dict(latent_channels=2, **LEVELS, **BASE)),
    ("VQModel", dict(latent_channels=3, vq_embed_dim=2, num_vq_embeddings=19, **LEVELS, **BASE)),
]
WORDS = ["default", "conv", "group", "silu", "positional", "UNetMidBlock2D"]


def answers(cls, config, weights=None):
    """The model's state, and what it says to a question; both of a seed."""
    model = cls.from_config(config)
    if weights is None:
        formats.vivid(model, 1)
    else:
        model.load_state_dict(weights)
    model = model.eval()
    x, t, labels = folders.question(model, 7)
    with torch.no_grad():
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
        return {"error": f"{type(error).__name__}: {error}".split("\n")[0][:60]}
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
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return torch.from_numpy(pipeline(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images)


def pipelines():
    for name in ["tiny_ddpm", "tiny_ldm"]:
        whole = json.loads((GOLDEN / name / "model_index.json").read_text())
        for key in ["_class_name", "scheduler", "unet", "vqvae", "extra"]:
            for value in [None, [None, None], [None, "UNet2DModel"], ["diffusers", None]]:
                with tempfile.TemporaryDirectory() as at:
                    shutil.copytree(GOLDEN / name, at, dirs_exist_ok=True)
                    (pathlib.Path(at) / "model_index.json").write_text(json.dumps(whole | {key: value}))
                    found = {"pipeline": name, "key": key, "value": value}
                    try:
                        found |= {"same": True} if torch.equal(picture(at), picture(GOLDEN / name)) else {"other": True}
                    except Exception as error:
                        found |= {"error": f"{type(error).__name__}: {error}".split("\n")[0].replace(at, "FOLDER")[:60]}
                    yield found


def main():
    lists = {"models": [model(*m) for m in MODELS], "pipelines": list(pipelines())}
    text = ",\n".join(f'"{name}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]" for name, cases in lists.items())
    out = GOLDEN / "nulls.json"
    out.write_text("{" + text + "}\n")
    print(f"{out}: {sum(len(m['nulls']) for m in lists['models'])} keys, {len(lists['pipelines'])} entries, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
