"""The error of PyTorch's own half precision on the models of the goldens: tests/golden/f16_errors.json.

    python half_golden.py

Each U-Net (unet_*.safetensors) and DiT (dit_*.safetensors) runs once more under torch.autocast("cpu", torch.float16): weights of 32
bits, convolutions, matrix products and attention in f16; the worst of PyTorch's paths counts.  Per file, as f32_error and f32_error_layer of unet_golden.py, against the
f64 values of the file: f16_error and f16_error_layer.  Names of zero gradient have no entry.
"""
import json
import pathlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.utils import logging
from safetensors import safe_open

from unet_golden import errors

logging.set_verbosity_error()
GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"


def runs(model, tensors):
    """By every path that PyTorch has on a CPU, as unet_golden.f32_runs: one alone is right by luck in some tensor."""
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            for attention in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
                with torch.backends.mkldnn.flags(enabled=onednn), sdpa_kernel([attention, SDPBackend.MATH]):
                    yield run(model.to(memory_format=layout), tensors, layout)


def run(model, tensors, layout):
    model.zero_grad()
    x = tensors["in/x"].clone(memory_format=layout).requires_grad_()
    t = tensors["in/t"].long() if getattr(model.config, "time_embedding_type", None) == "learned" else tensors["in/t"]
    labels = tensors.get("in/labels")
    if labels is None and isinstance(model, DiTTransformer2DModel):
        labels = torch.zeros(len(t), dtype=torch.int32)
    if labels is not None and not labels.is_floating_point():
        labels = labels.long()
    with torch.autocast("cpu", torch.float16):
        out = model(x, t, class_labels=labels).sample
    (out.float() * tensors["in/dy"]).sum().backward()
    grads = {n: torch.zeros_like(p).double() if p.grad is None else p.grad.double().clone() for n, p in model.named_parameters()}
    return {"out": out.detach().double(), "dx": x.grad.double()}, grads


def main():
    found = {}
    for path in sorted([*GOLDEN.glob("unet_*.safetensors"), *GOLDEN.glob("dit_*.safetensors")]):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about = {key: json.loads(value) for key, value in file.metadata().items()}
        kind = DiTTransformer2DModel if path.name.startswith("dit_") else UNet2DModel
        model = kind.from_config(about["config"]).eval()
        state = {n.removeprefix("param/"): v for n, v in tensors.items() if n.startswith("param/")}
        assert not set(dict(model.named_parameters())) ^ set(state), path
        model.load_state_dict(state, strict=False)
        exact = {what: tensors[f"f64/{what}"] for what in ("out", "dx")}
        grads = {n: tensors[f"f64/grad/{n}"] for n in state}
        made = errors(exact, grads, list(runs(model, tensors)), about["zero_grad"])
        found[path.name] = {"f16_error": made["f32_error"], "f16_error_layer": made["f32_error_layer"]}
        print(path.name, {what: made["f32_error"][what] for what in exact}, max(made["f32_error"].values()))
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    (GOLDEN / "f16_errors.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
