"""A file that is damaged, and the commands that read it."""

import hashlib
import re
import shutil


# Of a folder of the diffusers library.
WEIGHTS = "diffusion_pytorch_model.safetensors"

# What is demanded of a command that reads a damaged file, besides an orderly end.
REFUSES = "refuses"  # status 1 or 2, and an error that names the file
SAME = "same"  # refuses, or does what it would have done with the whole file
ORDERLY = "orderly"


class Target:
    """A file to damage in a copy of folders, and the commands that read it. `result`: a file of theirs."""

    def __init__(self, name, folders, file, demand, *commands, result=None):
        self.name, self.folders, self.file, self.demand = name, folders, file, demand
        self.commands, self.result = [[str(a) for a in command] for command in commands], result
        self.expected = {}

    def copy(self, case):
        for name, source in self.folders.items():
            if source.is_dir():
                shutil.copytree(source, case / name, ignore=lambda _, names: old_checkpoints(names))
            else:
                shutil.copy2(source, case / name)

    def original(self):
        name, _, file = self.file.partition("/")
        return self.folders[name] / file if file else self.folders[name]

    def made(self, case):
        path = case / self.result if self.result else None
        return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.exists() else None


def old_checkpoints(names):
    return sorted(n for n in names if re.fullmatch(r"step-[0-9]+\.safetensors", n))[:-1]


def shown_command(command):
    command = [*map(str, command), ""]
    two = command[1].startswith("--") or command[0] == "figure"
    return " ".join(command[: 1 + two])
