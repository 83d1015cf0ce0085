"""Section: kills."""

import contextlib
import os
import shlex
import signal
import subprocess
import time

from .compared import is_temporary
from .lab import Outcome
from .runs import CPU, KILLED


def parts(run):
    """The temporary files of a run."""
    found = set()
    for folder in (run, run / "checkpoints", run / "samples"):
        try:
            found.update(name for name in os.listdir(folder) if is_temporary(name))
        except OSError:
            pass
    return found


def kill(lab, arguments, run, moment):
    """Runs a command and kills it: after some seconds, or soon after the nth temporary file appears."""
    shown = f"denoir {shlex.join(map(str, arguments))}"
    if moment[0] == "seconds":
        shown = f"timeout -s KILL {moment[1]:.4f} {shown}"
    else:
        shown += f"  # killed {1e3 * moment[2]:.2f} ms after temporary file number {moment[1]}"
    before = time.monotonic()
    process = lab.popen([str(lab.denoir), *map(str, arguments)], run.parent)
    if moment[0] == "seconds":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment[1])
    else:
        seen = parts(run)
        left, end = moment[1], before + 60
        while process.poll() is None and time.monotonic() < end:
            new = parts(run) - seen
            seen |= new
            left -= len(new)
            if left <= 0:
                time.sleep(moment[2])
                break
            time.sleep(0.0002)
    process.kill()
    out, err = process.communicate()
    line = f"cd {shlex.quote(str(run.parent))} && {shown}"
    outcome = Outcome(line, process.returncode, out, err, time.monotonic() - before, 60)
    outcome.killed = process.returncode == -signal.SIGKILL
    return outcome


def kills(lab):
    each = -(-500 // len(KILLED)) if lab.long else 3
    done = trials = 0
    for kind in KILLED:
        seconds = lab.reference(kind)[1]
        left, tries = each, 0
        while left > 0 and tries < 10 * each:
            tries += 1
            with lab.case(evidence=True) as folder:
                run, history, here = folder / "run", [f"rm -rf {shlex.quote(str(folder / 'run'))}"], 0
                # A few kills a run: then most of them have work before and behind them.
                for _ in range(lab.rng.randint(1, min(left, 4))):
                    begun = (run / "recipe.toml").exists()
                    command = ["train", "--resume", "run", *CPU] if begun else lab.begin_command(kind, "run")
                    moment = ("seconds", lab.rng.uniform(0, seconds))
                    if lab.rng.random() < 0.5:
                        moment = ("part", lab.rng.randint(1, 8), lab.rng.uniform(0, 0.003))
                    outcome = kill(lab, command, run, moment)
                    history.append(outcome.line)
                    if not outcome.killed:
                        if outcome.wrong() or outcome.status != 0 and "steps done" not in outcome.err:
                            what = outcome.wrong() or outcome.first_error()
                            lab.found(f"{kind}: a run that was killed cannot go on: {what}", history)
                        continue
                    here += 1
                    if outcome.panic():
                        lab.found(f"{kind}: {outcome.panic()}", history)
                left, done, trials = left - here, done + here, trials + 1
                if lab.complete(kind, run, history):
                    lab.compare(kind, run, history, f"{kind}: after {here} kills")
    return f"{done} kills in {trials} runs of {len(KILLED)} kinds"
