"""Section: signals, limits of the size of files, and an output that is full."""

import re
import resource
import shlex
import signal
import subprocess
import time

from .compared import is_temporary, tree
from .lab import Outcome
from .runs import CPU, KINDS
from .target import shown_command


class Signalled:
    """A run in a folder with a hard name that gets signals once it has begun."""

    NAME = "it's a run"

    def __init__(self, lab, case, signals, ignore=()):
        self.run = case / self.NAME
        command = lab.begin_command("ddpm", self.NAME)
        steps, began = lab.rng.randint(2, KINDS["ddpm"][2] // 2), time.monotonic()
        process = lab.popen([str(lab.denoir), *command], case, ignore=ignore)
        metrics = self.run / "metrics.jsonl"
        done = lambda: metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        while done() < steps and process.poll() is None and time.monotonic() < began + 60:
            time.sleep(0.002)
        pauses = [0.0, *[0.02] * (len(signals) - 1)]
        for pause, number in zip(pauses, signals):
            time.sleep(pause)
            process.send_signal(number)
        pauses[0] = time.monotonic() - began
        sent = "".join(f" sleep {pause:.2f}; kill -{n.name[3:]} $!;" for pause, n in zip(pauses, signals))
        # A shell without job control has its background commands ignore SIGINT.
        shown = f"set -m; {'nohup ' if ignore else ''}denoir {shlex.join(command)} &{sent} wait $!; echo $?"
        began = time.monotonic()
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        line = f"cd {shlex.quote(str(case))} && {{ {shown}; }}"
        status = process.returncode
        self.outcome = Outcome(line, status, out, err, time.monotonic() - began, 60)


def signals(lab):
    rounds = 20 if lab.long else 2
    done = 0
    for number, status in [(signal.SIGINT, 130), (signal.SIGTERM, 143)] * rounds:
        done += 1
        name = number.name
        with lab.case() as case:
            signalled = Signalled(lab, case, [number])
            outcome, run = signalled.outcome, signalled.run
            how = [outcome.line]
            if outcome.panic() or outcome.status != status:
                ends = outcome.panic() or f"ends with {outcome.status}, not {status}"
                lab.found(f"{name}: training {ends}", how, f"{name} {ends}")
            told = re.search(r"stopped after step ([0-9]+)", outcome.text)
            if told and not (run / "checkpoints" / f"step-{int(told[1]):08}.safetensors").exists():
                lab.found(f"{name}: the checkpoint of the step that it names is missing", how)
            command = re.search(r"denoir train --resume .*", outcome.text)
            if not command:
                lab.found(f"{name}: no command is printed that goes on", how)
                continue
            # As a user types it: without --device. A real GPU would give other bytes.
            hidden = {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
            resumed = lab.run(["-c", command[0]], case, shown=command[0], program=["sh"], env=hidden)
            how.append(resumed.line)
            if resumed.status != 0:
                lab.found(f"{name}: the printed command `{command[0]}` {resumed.wrong((0,)) or 'fails'}", how)
            else:
                lab.compare("ddpm", run, how, f"{name}, resumed")
    for _ in range(rounds):
        done += 2
        with lab.case() as case:
            signalled = Signalled(lab, case, [signal.SIGINT] * 2)
            outcome = signalled.outcome
            if outcome.panic() or outcome.status != 130 or outcome.seconds > 5:
                ends = f"status {outcome.status} after {outcome.seconds:.1f} s, not 130 at once"
                lab.found(f"SIGINT twice: {ends}", [outcome.line])
            how = [outcome.line]
            if lab.complete("ddpm", signalled.run, how):
                lab.compare("ddpm", signalled.run, how, "SIGINT twice, resumed")
        with lab.case() as case:
            signalled = Signalled(lab, case, [signal.SIGHUP], ignore=[signal.SIGHUP])
            outcome = signalled.outcome
            if outcome.status != 0 or "stopped after" in outcome.text:
                what = f"SIGHUP, ignored by nohup, stops training (status {outcome.status})"
                lab.found(what, [outcome.line])
            else:
                lab.compare("ddpm", signalled.run, [outcome.line], "SIGHUP ignored")
    done += file_sizes(lab) + full_output(lab)
    return f"{done} commands with signals, file size limits or a full output"


def file_sizes(lab):
    """`ulimit -f`: writing more ends a program with SIGXFSZ, unless it ignores that."""
    run, done = lab.reference("ddpm")[0], 0
    vae = lab.reference("conv-vae")[0]
    commands = [
        (lab.begin_command("ddpm", "new"), (1, 8, 256)),
        (lab.begin_command("conv-vae", "new"), (1, 64)),
        (["sample", run, "--count", 4, "--steps", 2, "--sampler", "ddim", *CPU], (1,)),
        (["data", "digits", "--out", "sheet.png"], (1,)),
        (["export", run, "folder"], (1, 64)),
        (["encode", vae, "digits", "--count", 200, *CPU], (1, 64)),
        (["figure", "forward", run, *CPU], (1,)),
    ]
    for command, blocks in commands:
        for block in blocks:
            done += 1
            with lab.case() as case:
                shown = f"prlimit --fsize={1024 * block} denoir {shlex.join(map(str, command))}"
                outcome = lab.run(command, case, shown=shown, limits={resource.RLIMIT_FSIZE: 1024 * block})
                wrong = outcome.wrong((1,))
                if outcome.status == 0:
                    wrong = "ends with status 0"
                left = [n for n in tree(case) if is_temporary(n.split("/")[-1])]
                if not wrong and left:
                    wrong = f"leaves {left[0]}"
                if wrong:
                    what = f"ulimit -f: `{shown_command(command)}` {wrong}"
                    lab.found(what, [outcome.line], f"{command[0]} {wrong.split('(')[0]}")
    return done


def full_output(lab):
    """Results that cannot be printed are an error."""
    commands = [["--help"], ["--version"], ["help"], ["train", "--help"], ["recipes"], ["recipes", "digits"],
                ["devices"], ["data", "digits"], ["train", "digits", "--dry-run", *CPU]]  # fmt: skip
    for command in commands:
        with lab.case() as case, open("/dev/full", "w") as full:
            outcome = lab.run(command, case, shown=f"denoir {shlex.join(command)} > /dev/full", out=full)
            wrong = outcome.wrong((1, 2)) or ("ends with status 0" if outcome.status == 0 else None)
            if wrong:
                lab.found(f"`denoir {shlex.join(command)} > /dev/full` {wrong}", [outcome.line])
    return len(commands)
