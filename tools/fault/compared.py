"""What is compared of two runs."""

import json
import pathlib
import re

from .runs import KEPT


def tree(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def newest(run):
    return max((run / "checkpoints").glob("step-*.safetensors"))


TIMES = ("images_per_s", "seconds", "device_ms", "memory_mb")


def without_times(path):
    lines = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
            lines.append({k: v for k, v in entry.items() if k not in TIMES})
        except (ValueError, AttributeError):
            lines.append(line)
    return lines


def differences(reference, run, without_pictures=False):
    is_checkpoint = lambda name: re.fullmatch(r"checkpoints/step-[0-9]+\.safetensors", name)
    is_picture = lambda name: without_pictures and name.endswith(".png")
    wanted, there = tree(reference), tree(run)
    final = f"checkpoints/{newest(reference).name}"
    kept = sum(1 for name in there if is_checkpoint(name))
    if kept > KEPT:
        yield f"{kept} checkpoints are left, keep_checkpoints is {KEPT}"
    for name in sorted(there - wanted):
        if not is_checkpoint(name):
            yield f"a file is left behind: {name}"
    for name in sorted(wanted - there):
        # Latents are kept for speed alone: a resumed run that does not meet all images again writes none.
        if name == final or not (is_checkpoint(name) or is_picture(name) or name == "latents.safetensors"):
            yield f"{name} is missing"
    for name in sorted(wanted & there):
        read = without_times if name.endswith(".jsonl") else pathlib.Path.read_bytes
        if read(reference / name) != read(run / name):
            yield f"{name} differs from that of the uninterrupted run"
    for name in sorted(p.name for p in run.parent.iterdir() if p != run):
        yield f"a file is left beside the run: {name}"


def is_temporary(name):
    return name.endswith((".part", ".tmp")) or name.startswith(".tmp")
