"""Section: a full disk."""

import contextlib
import os
import shlex
import shutil
import subprocess

from .compared import newest, tree
from .lab import Broken
from .runs import MB


@contextlib.contextmanager
def small_disk(folder, size):
    """A disk of its own for a folder; None where this user or system gives none."""
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def disk(lab):
    tries, full = (60 if lab.long else 6), 0
    kinds = ("ddpm", "ldm", "conv-vae")
    for i in range(tries):
        kind = kinds[i % len(kinds)]
        reference = lab.reference(kind)[0]
        files = [reference / name for name in tree(reference)] + [newest(reference)]
        needed = sum(file.stat().st_size for file in files)
        size, room = 2 * needed + MB, int(lab.rng.uniform(0.005, 0.9) * needed)
        with lab.case() as case, small_disk(case, size) as mounted:
            if not mounted:
                return "skipped: mounting a small disk needs root"
            filler, run = case / "filler", case / "run"
            filler.write_bytes(bytes(size - room - (size - room) % 4096))
            outcome = lab.run(lab.begin_command(kind, "run"), case)
            how = [
                f"D={shlex.quote(str(case))}; mkdir -p $D && mount -t tmpfs -o size={size} tmpfs $D",
                f"head -c {filler.stat().st_size} /dev/zero > $D/filler", outcome.line, "rm $D/filler",
            ]  # fmt: skip
            full += outcome.status == 1
            wrong = outcome.wrong((0, 1))
            if outcome.status == 0 and not (run / "checkpoints" / newest(reference).name).exists():
                wrong = "ends with status 0 before it is done"
            if wrong:
                lab.found(f"{kind}: on a full disk training {wrong}", how)
            if outcome.status == 1 and "space" not in outcome.err.lower():
                lab.found(f"{kind}: on a full disk the error does not say so: {outcome.first_error()}", how)
            filler.unlink()
            if lab.complete(kind, run, how):
                # Pictures during training are not worth a run, and their loss was told.
                told = "warning: no samples" in outcome.err
                lab.compare(kind, run, how, f"{kind}: after a full disk", without_pictures=told)
    if not full:
        raise Broken("no run filled its disk")
    return f"{tries} runs on small disks, {full} of them full"
