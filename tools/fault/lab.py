"""The place of the experiments: commands, how they ended, runs and data that sections share, findings."""

import contextlib
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

from .compared import differences
from .files import jpeg, png
from .runs import CPU, KINDS, MEMORY, SMALL, sets


class Outcome:
    """How a command ended."""

    def __init__(self, line, status, out, err, seconds, limit):
        self.line, self.status, self.out, self.err, self.seconds = line, status, out, err, seconds
        self.text = out + err
        self.limit = limit
        self.killed = False

    def panic(self):
        found = re.search(r".*(panicked|defect in denoir).*", self.text)
        return f"panics: {found[0].strip()}" if found else None

    def wrong(self, allowed=(0, 1, 2)):
        """What is wrong with it whatever it had to do, or None. A failure says one line of `error: ...`."""
        if self.status is None:
            return f"does not end in {self.limit} s"
        if self.panic():
            return self.panic()
        if self.status < 0:
            last = (self.err.strip().splitlines() or [""])[-1]
            return f"is killed by {signal.Signals(-self.status).name} ({last})"
        if self.status not in allowed:
            return f"ends with status {self.status}: {self.first_error()}"
        errors = sum(line.startswith("error:") for line in self.text.splitlines())
        if self.status in (1, 2) and errors != 1:
            return f"ends with status {self.status} and {errors} lines that begin with `error:`"
        return None

    def first_error(self):
        lines = self.err.strip().splitlines()
        return next((line for line in lines if line.startswith("error:")), (lines or ["nothing said"])[-1])


class Finding:
    def __init__(self, what, how):
        self.what, self.how, self.count = what, how, 1


class Lab:
    """The temporary folder, the program, and what was found."""

    def __init__(self, denoir, long, seed):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="denoir-faults-"))
        self.folder.chmod(0o755)
        self.long, self.seed = long, seed
        # A copy: a build may replace the original meanwhile, and another user may not reach it.
        (self.folder / "bin").mkdir()
        self.denoir = self.folder / "bin" / "denoir"
        shutil.copy2(denoir, self.denoir)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("DENOIR_")}
        self.env.update(RAYON_NUM_THREADS="1", PATH=f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}")
        self.findings = {}
        self.section = None
        self.references = {}
        self.cases = 0

    # Each section has random numbers of its own, so that `--only` repeats it.
    def begin(self, section):
        self.section, self.rng = section, random.Random(f"{self.seed} {section}")

    def found(self, what, how, alike=None):
        """Remembers a finding; those that differ in numbers are of one sort."""
        key = (self.section, alike or re.sub(r"[0-9]+(\.[0-9]+)?", "0", what))
        if key in self.findings:
            self.findings[key].count += 1
            return
        self.findings[key] = Finding(what, how)
        print(f"  finding: {what}", flush=True)

    @contextlib.contextmanager
    def case(self, prepare=None, evidence=False):
        """A new folder. After a finding of a new sort it is made anew, for the command to be run in it again,
        or with `evidence` kept as it is; else it goes."""
        self.cases += 1
        folder, before = self.folder / f"case-{self.cases:05}", len(self.findings)

        def make():
            folder.mkdir()
            folder.chmod(0o777)
            if prepare:
                prepare(folder)

        make()
        yield folder
        new = len(self.findings) > before
        if not (new and evidence):
            shutil.rmtree(folder)
        if new and not evidence:
            make()

    def popen(self, arguments, cwd, limits=None, ignore=(), out=subprocess.PIPE, env=None, **more):
        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: MEMORY} | (limits or {})

        def prepare():
            for kind, most in limits.items():
                resource.setrlimit(kind, (most, most))
            for number in ignore:
                signal.signal(number, signal.SIG_IGN)

        return subprocess.Popen(
            arguments, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True,
            errors="replace", env=self.env | (env or {}), preexec_fn=prepare, **more,
        )  # fmt: skip

    def run(self, arguments, cwd, seconds=60, shown=None, **more):
        """Runs denoir, or what `program` names, to its end."""
        arguments = [str(a) for a in arguments]
        line = f"cd {shlex.quote(str(cwd))} && {shown or 'denoir ' + shlex.join(arguments)}"
        program = more.pop("program", [str(self.denoir)])
        before = time.monotonic()
        process = self.popen([*program, *arguments], cwd, **more)
        try:
            out, err = process.communicate(timeout=seconds)
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            status = None
        except BaseException:
            process.kill()
            process.wait()
            raise
        return Outcome(line, status, out or "", err or "", time.monotonic() - before, seconds)

    def must(self, arguments, cwd, seconds=300):
        """Runs what a section needs before it can look for anything."""
        outcome = self.run(arguments, cwd, seconds)
        if outcome.status != 0:
            raise Broken(f"{outcome.line}\n{outcome.text}")
        return outcome

    # --- Runs and data that sections share.

    def make_folder(self, *names):
        folder = self.folder.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def pictures(self):
        """24 pictures in three classes."""
        folder = self.folder / "pictures"
        if not folder.exists():
            rng = random.Random(1)
            for i in range(24):
                (folder / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
                write = (png, jpeg)[i % 4 == 3]
                (folder / "abc"[i % 3] / f"{i:02}.{write.__name__}").write_bytes(write(rng))
        return folder

    def begin_command(self, kind, out, steps=None, vae=None):
        recipe, settings, own_steps = KINDS[kind]
        steps = steps or own_steps
        if kind == "imported":
            settings = settings + sets(f"steps={steps}")
            return ["import", str(self.exported("ddpm")), out, "--data", "digits", *settings]
        command = ["train", recipe, "--out", out, *CPU, "--steps", steps, *SMALL, *settings]
        if kind == "ldm":
            command += ["--vae", vae or self.reference("kl-vae")[0]]
        command += ["--data", f"images:{self.pictures()}" if kind == "classes" else "digits"]
        return [str(a) for a in command]

    def reference(self, kind):
        """An uninterrupted run and the seconds that it took."""
        if kind not in self.references:
            folder = self.make_folder("reference", kind) / "run"
            before = time.monotonic()
            self.must(self.begin_command(kind, folder), self.folder)
            if kind == "imported":
                self.must(["train", "--resume", folder, *CPU], self.folder)
            self.references[kind] = (folder, time.monotonic() - before)
        return self.references[kind]

    def exported(self, kind):
        folder = self.folder / "exported" / kind
        if not folder.exists():
            self.make_folder("exported")
            self.must(["export", self.reference(kind)[0], folder], self.folder)
        return folder

    def complete(self, kind, run, history):
        """Goes on with a run until it is done. False, and a finding, if it cannot."""
        for _ in range(3):
            begun = (run / "recipe.toml").exists()
            command = ["train", "--resume", run.name, *CPU] if begun else self.begin_command(kind, run.name)
            outcome = self.run(command, run.parent)
            history.append(outcome.line)
            if outcome.status == 0 and (begun or command[0] == "train"):
                return True
            if outcome.status == 2 and "steps done" in outcome.err:
                return True
            if outcome.status != 0:
                break
        self.found(f"{kind}: a stopped run cannot go on: {outcome.wrong() or outcome.first_error()}", history)
        return False

    def compare(self, kind, run, history, after, without_pictures=False):
        """Findings for all that is not as in the uninterrupted run."""
        for what in differences(self.reference(kind)[0], run, without_pictures):
            self.found(f"{after}, {what}", history, alike=f"{kind} {re.sub('tmp.*|[0-9]+', '0', what)}")


class Broken(Exception):
    """What has to work before faults make sense does not."""
