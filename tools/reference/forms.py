"""Other forms in which weights come: tests/golden/forms/, and torch_save_legacy.bin.

    checkpoint-3/    as train_unconditional.py saves its state: unet/, unet_ema/ (EMAModel.save_pretrained) and optimizer.bin
    compiled/        the average: names behind _orig_mod. (torch.compile), a byte order mark before the JSON
    parallel/        the average: names behind module. (DataParallel), a .bin of the format before PyTorch 1.6
    torch_save_legacy.bin    the tensors of torch_save.bin (formats.py) in that format

That format names storages by their addresses, so two runs do not write the same bytes.
"""
import json
import pathlib
import shutil

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

import formats

NAME = "diffusion_pytorch_model"
OLD = dict(_use_new_zipfile_serialization=False)


def main():
    golden = pathlib.Path(__file__).parents[2] / "tests/golden"
    out = golden / "forms"
    shutil.rmtree(out, ignore_errors=True)
    at = out / "checkpoint-3"
    unet = formats.vivid(UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=2, block_out_channels=(2, 4),
                                     attention_head_dim=2, down_block_types=["DownBlock2D"] * 2,
                                     up_block_types=["UpBlock2D"] * 2), 1)
    ema = EMAModel(unet.parameters(), decay=0.9, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_cls=UNet2DModel,
                   model_config=unet.config)
    formats.vivid(unet, 2)
    for _ in range(3):
        ema.step(unet.parameters())
    unet.save_pretrained(at / "unet")
    ema.save_pretrained(at / "unet_ema")
    (at / "optimizer.bin").write_bytes(b"")
    averages = load_file(at / "unet_ema" / f"{NAME}.safetensors")
    config = json.dumps(json.loads(unet.to_json_string()), indent=2) + "\n"

    def form(name, prefix, mark):
        (out / name).mkdir()
        (out / name / "config.json").write_text(mark + config)
        return {prefix + k: v for k, v in averages.items()}

    save_file(form("compiled", "_orig_mod.", "\ufeff"), out / "compiled" / f"{NAME}.safetensors")
    torch.save(form("parallel", "module.", ""), out / "parallel" / f"{NAME}.bin", **OLD)
    torch.save(torch.load(golden / "torch_save.bin"), golden / "torch_save_legacy.bin", **OLD)


if __name__ == "__main__":
    main()
