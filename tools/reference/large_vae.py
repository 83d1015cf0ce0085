"""A VAE golden at full size, too large to commit, for a comparison run by hand (format: vae_golden.py).

    python tools/reference/large_vae.py OUT.safetensors                  64 x 64 pictures, 3 levels, batch 2 (49 MB)
    python tools/reference/large_vae.py OUT.safetensors --config mlp     784-512-256-2 and back, batch 16 (13 MB)
"""
import argparse

import torch

import configs
import vae_golden

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out")
parser.add_argument("--config", choices=sorted(configs.KNOWN_VAES), default="conv64")
parser.add_argument("--batch", type=int)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

case = configs.KNOWN_VAES[args.config]
batch = args.batch or case["batch"]
print(args.config, "batch", batch, "threads", torch.get_num_threads())
print(vae_golden.write(args.out, case["config"], case["loss"], args.seed, batch, case["size"]))
