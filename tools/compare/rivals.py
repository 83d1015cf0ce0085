"""The programs of the comparison: how to get them, how to call them, what they cannot do here."""
import copy
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Workload: batch size on a CPU, on a GPU, images of the proof; steps timed in a round.
WORKLOADS = {
    "arena-unet": (2, 2, 2, 30),
    "mnist-unet": (16, 128, 2, 12),
    "celeba64-unet": (4, 64, 2, 5),
    "ldm-unet": (64, 512, 2, 6),
    "vae64": (8, 64, 2, 10),
    "mlp-vae": (128, 128, 16, 300),
    "cifar10-unet": (4, 128, 2, 5),
    "dit-s4": (4, 256, 2, 5),
}

# PyTorch's variants: plain f32 first, of which the best counts, then others under their own names.
EAGER = {
    "PyTorch eager": [],
    "PyTorch fused Adam": ["--fused"],
    "PyTorch channels-last": ["--channels-last"],
    "PyTorch channels-last, fused Adam": ["--channels-last", "--fused"],
}
LABELLED = {
    "compile": ("PyTorch compile, fused Adam", ["--compile", "--fused"]),
    "amp": ("PyTorch amp bf16, fused Adam", ["--amp", "--fused"]),
    "tf32": ("PyTorch TF32, channels-last, fused Adam", ["--tf32", "--channels-last", "--fused"]),
}


class Unavailable(Exception):
    """Why a program cannot take part, in one line."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def command(argv, what, **options):
    """Runs a step of an installation; its output goes to standard error."""
    say(f"{what}: {' '.join(map(str, argv))}")
    try:
        status = subprocess.run([str(a) for a in argv], stdout=sys.stderr, **options).returncode
    except OSError as e:
        raise Unavailable(f"{what}: {argv[0]}: {e.strerror}") from e
    if status != 0:
        raise Unavailable(f"{what} failed with exit status {status} (see above)")


class Denoir:
    name, eager, precision = "denoir", False, []

    def __init__(self, given, device, threads, limit):
        self.device, self.threads, self.limit = device, threads, limit
        built_here = "" if given else revision()
        if given is None:
            command(["cargo", "build", "--release", "--bin", "denoir"], "building denoir", cwd=ROOT)
            target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
            given = target / "release" / "denoir"
        self.binary = Path(given).resolve()
        found = load.run([self.binary, "--version"], 60)
        if found.status != 0:
            raise Unavailable(found.complaint())
        self.version = found.out.split()[-1] + built_here

    def call(self, *arguments):
        threads = ["--threads", self.threads] if self.device == "cpu" else []  # a GPU has none to set
        return load.run([self.binary, "bench", *arguments, "--device", self.device, *threads, *self.precision],
                        self.limit)

    def in_16_bits(self):
        """The same program by the precision that PyTorch's amp has a counterpart in."""
        other, bits = copy.copy(self), "bf16" if self.device == "cpu" else "f16"
        other.name, other.precision = f"denoir {bits}", ["--precision", bits]
        return other

    def check(self, workload, given, out):
        return self.call("check", workload, "--given", given, "--out", out)

    def takes(self, workload, gpu):
        return None

    def time(self, workload, batch, steps):
        """Training and sampling run one after the other, each in a process of its own; the load is the higher one."""
        parts = {}
        for kind in ("step", "sample"):
            done = self.call(kind, workload, "--batch", batch, "--steps", steps, "--json")
            if done.status != 0:
                return done, None
            parts[kind] = json.loads(done.out) | dict(others=done.others)
        loads = [p["others"] for p in parts.values() if p["others"] is not None]
        done.others = max(loads, default=None)
        step = parts["step"]
        return done, step | dict(step=step, sample=parts["sample"])


def revision():
    """The commit that is built, for the record; empty outside a repository."""
    if shutil.which("git") is None:
        return ""
    ask = lambda *a: subprocess.run(["git", "-C", str(ROOT), *a], capture_output=True, text=True)
    found = ask("rev-parse", "--short", "HEAD")
    if found.returncode != 0:
        return ""
    return f" ({found.stdout.strip()}{' and changes' if ask('status', '--porcelain', '-uno').stdout.strip() else ''})"


def python_with_torch(given, cache):
    """A Python that has PyTorch: the one given, this one, or one in the cache, made if needed."""
    has = lambda python: load.run([python, "-c", "import torch"], 600).status == 0
    if given is not None:
        if not has(given):
            raise Unavailable(f"{given} has no PyTorch: pip install -r tools/compare/requirements.txt")
        return given
    own = cache / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    for python in (sys.executable, own):
        if Path(python).exists() and has(python):
            return python
    try:
        venv.create(cache / "venv", with_pip=True)
    except (subprocess.CalledProcessError, OSError) as e:
        raise Unavailable(f"no Python environment in {cache / 'venv'} (on Debian: apt-get install python3-venv): {e}") from e
    command([own, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], "installing PyTorch")
    return own


class PyTorch:
    """What the variants share: the Python, the device, and the proof."""

    def __init__(self, given, cache, gpu, threads, clip, limit):
        self.python, self.threads, self.clip, self.limit = python_with_torch(given, cache), threads, clip, limit
        about = ("import torch, json; print(json.dumps([torch.__version__, torch.cuda.is_available(), "
                 "torch.backends.mps.is_available(), torch.cuda.get_device_name() if torch.cuda.is_available() else None]))")
        self.version, cuda, mps, self.gpu_name = json.loads(load.run([self.python, "-c", about], 600).out)
        self.device = ("cuda" if cuda else "mps" if mps else None) if gpu else "cpu"

    def give(self, workload, images, folder):
        return load.run([self.python, HERE / "torch_check.py", "give", workload, folder, "--batch", images], self.limit)

    def judge(self, workload, folder, factor):
        return load.run([self.python, HERE / "torch_check.py", "judge", workload, folder, "--factor", factor], self.limit)


class Variant:
    def __init__(self, torch, name, flags, eager):
        self.torch, self.name, self.flags, self.eager = torch, name, flags, eager

    def takes(self, workload, gpu):
        """None, or why not; an empty reason is not worth a line."""
        if self.torch.device is None:
            return "PyTorch sees no GPU here"
        if workload == "mlp-vae" and "--channels-last" in self.flags and self.eager:
            return ""  # no images, so no layout
        return None

    def time(self, workload, batch, steps):
        t = self.torch
        clip = [] if t.clip else ["--no-clip"]
        argv = [t.python, HERE / "torch_step.py", workload, "--device", t.device, "--batch", batch, "--steps", steps]
        return parsed(load.run([*argv, "--threads", t.threads, *self.flags, *clip], t.limit))


def parsed(done):
    if done.status != 0:
        return done, None
    return done, json.loads(done.out.strip().splitlines()[-1])


def cargo_program(name, cache, features):
    """Builds the program in the folder `name` beside this file, in the cache; its binary."""
    folder = cache / name
    for file in ("Cargo.toml", "src/main.rs"):
        new, old = HERE / name / file, folder / file
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)
    argv = ["cargo", "build", "--release", "--manifest-path", folder / "Cargo.toml", "--target-dir", folder / "target"]
    if features:
        argv += ["--no-default-features", "--features", features]
    command(argv, f"building {name}")
    return folder / "target" / "release" / f"{name}-step"


class Burn:
    eager, version = False, "0.22.1"
    workloads = ("arena-unet", "mnist-unet", "celeba64-unet", "ldm-unet")

    def __init__(self, cache, gpu, threads, limit):
        self.backend, self.threads, self.limit = "wgpu" if gpu else "flex", threads, limit
        self.name = f"Burn {self.backend}"
        self.binary = cargo_program("burn", cache, "wgpu" if gpu else "x86-v4" if avx512() else "flex")

    def takes(self, workload, gpu):
        return None if workload in self.workloads else "not written for Burn"

    def time(self, workload, batch, steps):
        argv = [self.binary, self.backend, workload, "--batch", batch, "--steps", max(3, steps // 3)]
        return parsed(load.run(argv, self.limit, env=dict(RAYON_NUM_THREADS=str(self.threads))))


def avx512():
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class Meganeura:
    name, eager, version = "Meganeura", False, "0.3.0"

    def __init__(self, cache, gpu, limit):
        self.gpu, self.limit = gpu, limit
        self.binary = cargo_program("meganeura", cache, None)

    def takes(self, workload, gpu):
        return None if workload == "arena-unet" else "not written for Meganeura"

    def time(self, workload, batch, steps):
        steps = steps if self.gpu else 3  # a software Vulkan driver takes a second a step
        return parsed(load.run([self.binary, workload, "--batch", batch, "--steps", steps], self.limit))
