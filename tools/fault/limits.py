"""Section: limits of memory, processes and threads."""

import os
import resource
import shlex

from .runs import CPU, MB, NOBODY
from .target import shown_command


def limited_commands(lab):
    vae = lab.reference("conv-vae")[0]
    latents = lab.make_folder("made") / "limit-latents"
    if not latents.exists():
        lab.must(["encode", vae, "digits", "--count", 3, *CPU, "--out", latents], lab.folder)
    few = ["--count", 1, "--steps", 2, "--sampler", "ddim", *CPU, "--out", "out.png"]
    return [
        lab.begin_command("ddpm", "new", steps=12),
        ["sample", lab.reference("ddpm")[0], *few],
        ["data", f"images:{lab.pictures()}", "--out", "sheet.png"],
        ["encode", vae, "digits", "--count", 3, *CPU],
        ["decode", vae, latents, *CPU],
        ["--help"],
    ]


def process_limit_works(lab, user):
    """Whether RLIMIT_NPROC keeps this user from a second process."""
    process = lab.popen(["sh", "-c", "true & wait $!"], "/", {resource.RLIMIT_NPROC: 1}, **user)
    return process.communicate() and process.returncode != 0


def starts_in(lab):
    """MB of memory in which the program begins: with less the system ends it, or Rust's own start."""
    for size in range(8, 64):
        with lab.case() as case:
            if lab.run(["--help"], case, limits={resource.RLIMIT_AS: size * MB}).status == 0:
                return size + 1
    return 64


def limits(lab):
    done, worked, notes = 0, 0, ""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    drop = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups " if user else ""
    commands = limited_commands(lab)

    def check(what, prefix, command, threads, limits, **more):
        nonlocal done, worked
        with lab.case() as case:
            shown = f"RAYON_NUM_THREADS={threads} {prefix} denoir {shlex.join(map(str, command))}"
            env = {"RAYON_NUM_THREADS": str(threads)}
            outcome = lab.run(command, case, shown=shown, limits=limits, env=env, **more)
            # 127: the loader finds no room for libraries, before denoir begins.
            allowed = (0, 1, 2, 127) if "memory" in what else (0, 1, 2)
            wrong = outcome.wrong(allowed)
            done, worked = done + 1, worked + (outcome.status == 0)
            if wrong:
                alike = f"{what.split()[-1]} {command[0]} {wrong[:40]}"
                lab.found(f"{what}: `{shown_command(command)}` {wrong}", [outcome.line], alike)

    # From what the system needs to start the program to what a tiny run needs.
    least = starts_in(lab)
    for _ in range(2000 if lab.long else 60):
        threads, size = lab.rng.choice(("1", "4")), int(lab.rng.uniform(least, 64) * MB)
        command = lab.rng.choice(commands)
        check(f"{size} bytes of memory", f"prlimit --as={size}", command, threads, {resource.RLIMIT_AS: size})
    if process_limit_works(lab, user):
        for most in (1, 2, 3, 4, 6, 9):
            for command in commands:
                limit = {resource.RLIMIT_NPROC: most}
                check(f"{most} processes", f"{drop}prlimit --nproc={most}", command, 4, limit, **user)
    else:
        notes = "; processes skipped: this user has no limit of them"
    # As many as the limit lets start: without one they would take every process number of the machine.
    for command in commands if lab.long else commands[1:2]:
        limit = {resource.RLIMIT_NPROC: 1500}
        check("100000 threads", f"{drop}prlimit --nproc=1500", command, 100_000, limit, seconds=10, **user)
    return f"{done} commands under limits of memory, processes and threads: {worked} worked{notes}"
