"""CLIP text model goldens: transformers' own CLIPTextModel with seeded weights, its output and every gradient, in f64.

    python clip_golden.py           # tests/golden/clip_*.safetensors, half a minute

As unet_golden.py (whose file format this is, but for `in/ids` i32 [N, S] in place of an image): the f64 run takes the
f32 values of the parameters, and the worst of PyTorch's f32 runs is the yardstick.  Besides the metadata there, `skip`
is the pipelines' clip_skip: the hidden state after so many layers less, through the final norm all the same (done by
hand, since the pipelines of diffusers 0.42 look for a `text_model` that transformers 5 does not have).  `initial` are
the deviations of the first values of a wider model's parameters.

sheet: weights by a formula instead, which the test makes itself; kept are numbers of its output.
"""
import json
import math
import pathlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel

from unet_golden import errors, save, weigh

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"

KEYS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "hidden_act", "layer_norm_eps"]

CASES = {
    # All positions in use, a token twice in a text and in both texts, tokens that no text has.
    "quick_gelu": dict(config=dict(vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                                   max_position_embeddings=7, hidden_act="quick_gelu"),
                       ids=[[9, 3, 3, 0, 10, 10, 10], [9, 5, 1, 3, 7, 10, 10]], skip=0),
    # Heads of 5, exact GELU, fewer tokens than positions, another epsilon, the last of three layers left out.
    "gelu_skip": dict(config=dict(vocab_size=9, hidden_size=10, intermediate_size=14, num_hidden_layers=3, num_attention_heads=2,
                                  max_position_embeddings=6, hidden_act="gelu", layer_norm_eps=0.1),
                      ids=[[7, 2, 4, 8, 8]], skip=1),
}


def config_of(config):
    return CLIPTextConfig(bos_token_id=config["vocab_size"] - 2, eos_token_id=config["vocab_size"] - 1,
                          pad_token_id=config["vocab_size"] - 1, **config)


def build(config, seed):
    """A model whose every part matters: norms away from (1, 0), weights of variance 1/fan_in, queries and keys a little larger."""
    torch.manual_seed(seed)
    model = CLIPTextModel(config_of(config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                is_gain = "norm" in name and name.endswith("weight")
                p.copy_(torch.randn(p.shape) * (0.4 if is_gain else 0.3) + (1.0 if is_gain else 0.0))
            elif "embedding" in name:
                p.copy_(torch.randn(p.shape))
            else:
                gain = 1.3 if "q_proj" in name or "k_proj" in name else 1.0
                p.copy_(torch.randn(p.shape) * gain / math.sqrt(p[0].numel()))
    return model


def forward(model, ids, skip):
    states = model(input_ids=ids, output_hidden_states=True)
    if not skip:
        return states.last_hidden_state
    return model.final_layer_norm(states.hidden_states[-(skip + 1)])


def run(model, dtype, ids, skip, dy):
    """Output and the gradients by name, all as f64."""
    model = model.to(dtype)
    if dtype == torch.float64:
        model.set_attn_implementation("sdpa")  # the other one's softmax is in f32
    model.zero_grad()
    out = forward(model, ids, skip)
    (out * dy.to(dtype)).sum().backward()
    grads = {n: torch.zeros_like(p).double() if p.grad is None else p.grad.double().clone() for n, p in model.named_parameters()}
    return out.detach().double(), grads


def f32_runs(model, ids, skip, dy):
    for onednn in (True, False):
        for implementation in ("eager", "sdpa"):
            for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
                model.set_attn_implementation(implementation)
                with torch.backends.mkldnn.flags(enabled=onednn), sdpa_kernel([kernel, SDPBackend.MATH]):
                    yield run(model, torch.float32, ids, skip, dy)


def initial():
    """Standard deviations of the first values of a model wide enough to measure them; of norms and biases the value itself."""
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(vocab_size=400, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
                                         num_attention_heads=4, max_position_embeddings=77))
    of = lambda p: p.std().item() if p.ndim > 1 else p[0].item()
    assert all((p == p[0]).all() for p in model.parameters() if p.ndim == 1)
    return {"config": {k: model.config.to_dict()[k] for k in KEYS}, "of": {n: of(p) for n, p in model.named_parameters()}}


def write(name, config, ids, skip, seed):
    model = build(config, seed)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.tensor(ids)
    dy = torch.randn(*ids.shape, config["hidden_size"])
    runs = list(f32_runs(model, ids, skip, dy))
    out, g = run(model, torch.float64, ids, skip, dy)

    zero, weakest = weigh(name, params, g, out.norm().item() * dy.double().norm().item())
    unused = [f"encoder.layers.{config['num_hidden_layers'] - 1 - i}." for i in range(skip)]
    wanted = [n for n in g if "k_proj.bias" in n or any(n.startswith(u) for u in unused)]
    assert zero == wanted, f"{name}: {zero}"  # a bias of all keys moves a row of scores as a whole
    about = errors({"out": out}, g, [({"out": r[0]}, r[1]) for r in runs], zero)
    error = about["f32_error"]
    tensors = {f"param/{n}": p for n, p in params.items()}
    tensors |= {"in/ids": ids.to(torch.int32), "in/dy": dy, "f64/out": out}
    tensors |= {f"f64/grad/{n}": v for n, v in g.items()}
    written = json.loads(model.config.to_json_string(use_diff=False))
    save(OUT / f"clip_{name}.safetensors", tensors, config=written, skip=skip, **about, seed=seed,
         loss=(out * dy.double()).sum().item(), initial=initial())
    print(f"{name}: {sum(p.numel() for p in params.values())} parameters, {len(g)} tensors, {len(zero)} of zero gradient; "
          f"f32 error: out {error['out']:.1e}; {weakest}")


def sheet():
    """A model of 24 channels for the tokenizer of 522 tokens; its weights are sines.  "A red circle!", padded to 77."""
    config = dict(vocab_size=522, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ids = torch.tensor([[520, 320, 514, 519, 256] + [521] * 72])
    numbers = {}
    for act in ("quick_gelu", "gelu"):
        model = CLIPTextModel(config_of(config | {"hidden_act": act})).eval()
        with torch.no_grad():
            for k, (name, p) in enumerate(sorted(model.named_parameters())):
                v = torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64) + k).reshape(p.shape)
                if p.ndim >= 2:
                    v = v / math.sqrt(p[0].numel())
                else:
                    v = 0.1 * v + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
                p.copy_(v.float())
            model = model.double()
            model.set_attn_implementation("sdpa")
            for skip in (0, 1):
                out = forward(model, ids, skip)[0]
                numbers[f"{act} {skip}"] = dict(first=out[1, :4].tolist(), last=out[76, -2:].tolist(), squares=(out**2).sum().item())
    for key, v in numbers.items():
        print(f"sheet, {key}: {v}")
    (OUT / "clip_sheet.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(CASES.items(), 400):
        write(name, seed=seed, **case)
    sheet()
