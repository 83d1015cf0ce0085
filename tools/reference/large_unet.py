"""A U-Net golden at full size, too large to commit, for a comparison run by hand (format: unet_golden.py).

    python tools/reference/large_unet.py OUT.safetensors                     the MNIST model, batch 4 (about 21 MB)
    python tools/reference/large_unet.py OUT.safetensors --config cifar10    google/ddpm-cifar10-32, batch 2 (430 MB)
"""
import argparse

import torch

import configs
import unet_golden

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out")
parser.add_argument("--config", choices=sorted(configs.KNOWN), default="mnist")
parser.add_argument("--batch", type=int, help="4, or 2 from ten million parameters up")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

config = configs.KNOWN[args.config]
batch = args.batch or (4 if max(config["block_out_channels"]) <= 128 else 2)
size = config["sample_size"]
times = [float(1 + 997 * i // max(1, batch - 1)) for i in range(batch)]  # 1 ... 998
print(args.config, "batch", batch, "threads", torch.get_num_threads())
print(unet_golden.write(args.out, config, args.seed, batch, (size, size), times))
