"""Time and memory of a folder of Stable Diffusion's full size (large_sd.py makes one), denoir beside diffusers on the CPU, in turn:

    python tools/reference/large_time.py FOLDER target/release/denoir [--size 512] [--steps 3] [--rounds 1] [--threads 2]

Each run is a process of its own: one picture by DDIM, guidance 7.5, torch's random numbers, PyTorch in f32. A step is the difference of
runs of STEPS and of one step, over STEPS - 1; the rest of the run of one step is opening, the text encoder and the VAE. Memory is the
peak resident set of the process. The two pictures are compared, in levels of 255.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

PROMPT = "a photo of a cat"


def draw(folder, out, size, steps, threads):
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    pipe(PROMPT, width=size, height=size, num_inference_steps=steps, generator=generator).images[0].save(out)


def measured(command, environment):
    """Seconds, seconds of CPU, and peak memory in GiB of a process."""
    start = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (command, status)
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def parsed(about, size, steps):
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("denoir")
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def compare(args, programs):
    """`programs`: by name the command of a round and so many steps. Each runs once unmeasured, which brings its files into memory."""
    run = lambda command: measured([str(part) for part in command], {"RAYON_NUM_THREADS": str(args.threads)})
    for command in programs.values():
        run(command("warm", 1))
    for number in range(args.rounds):
        for name, command in programs.items():
            (first, cpu, _), (last, more, memory) = (run(command(number, steps)) for steps in (1, args.steps))
            step = (last - first) / (args.steps - 1)
            print(f"round {number + 1}: {name:9} {step:6.2f} s a step ({(more - cpu) / (args.steps - 1):.2f} s of CPU), "
                  f"{first - step:6.2f} s besides, peak {memory:.2f} GiB", flush=True)


def main():
    args = parsed(__doc__, 512, 3)
    out = pathlib.Path(tempfile.mkdtemp())
    compare(args, {
        "denoir": lambda _, steps: [args.denoir, "sample", args.folder, "--prompt", PROMPT, "--sampler", "ddim", "--rng", "torch",
                                    "--seed", "7", "--device", "cpu", "--count", "1", "--width", args.size, "--height", args.size,
                                    "--steps", steps, "--out", out / "denoir.png"],
        "diffusers": lambda _, steps: [sys.executable, __file__, "--draw", args.folder, out / "diffusers.png", args.size, steps,
                                       args.threads],
    })
    import numpy as np
    from PIL import Image
    a, b = (np.asarray(Image.open(out / f"{name}.png").convert("RGB"), np.int16) for name in ("denoir", "diffusers"))
    print(f"pictures: at most {abs(a - b).max()} levels apart, mean {abs(a - b).mean():.4f}; values {a.min()} to {a.max()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--draw"]:
        folder, out, *numbers = sys.argv[2:]
        draw(folder, out, *map(int, numbers))
    else:
        main()
