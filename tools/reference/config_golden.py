"""What a scheduler_config.json means to another class, and what a null means: tests/golden/scheduler_configs.json.

Each case is a file, the class that reads it, and where diffusers' from_config and four steps of the walk of
scheduler_golden.py lead; "error" where the library raises. The file is the configuration of its class by default, one
with options of Stable Diffusion, or only its name; then each key of each class set to null.
"""
import inspect
import json
import pathlib

import torch

import scheduler_golden as golden

CLASSES = ["DDPM", "DDIM", "DDIMInverse", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", golden.DPM,
           "PNDM", golden.UNI]
# What the names of denoir's command line set beside the class.
SETS = {golden.DPM: dict(solver_order=2, algorithm_type="dpmsolver++"), "PNDM": dict(skip_prk_steps=False),
        golden.UNI: dict(solver_order=2)}
STEPS = 4


def case(file, name):
    """What class `name` makes of a file: the last sample of a walk."""
    def scheduler(cls):
        import diffusers
        first = getattr(diffusers, file["_class_name"])
        if cls.__name__ == file["_class_name"]:
            return cls.from_config(file)
        return cls.from_config(first.from_config(file).config, **SETS.get(name, {}))

    found = {"file": json.dumps(file), "class": name + "Scheduler"}
    try:
        walked = golden.walk(name, STEPS, scheduler, {})
        found |= {"timesteps": walked["timesteps"], "last": walked["path"][-1]}
    except Exception as error:
        found |= {"error": f"{type(error).__name__}: {error}"[:100]}
    return found


def main():
    torch.set_default_dtype(torch.float64)
    import diffusers
    of = lambda name: getattr(diffusers, name + "Scheduler")
    plain = lambda name, **options: json.loads(of(name)(**options).to_json_string())
    cases = []
    for first in CLASSES:
        bare = {"_class_name": first + "Scheduler"}
        for file in [plain(first), plain(first, **golden.SD, timestep_spacing="leading"), bare]:
            cases += [case(file, name) for name in CLASSES]
    for name in CLASSES:
        keys = [key for key in inspect.signature(of(name).__init__).parameters if key not in ("self", "kwargs")]
        # UniPC's default last sigma of 0 leaves some of its options without a finite sample.
        options = golden.LOWEST if name == golden.UNI else {}
        cases += [case({**plain(name, **options), key: None}, name) for key in keys]
    out = pathlib.Path(__file__).parents[2] / "tests/golden/scheduler_configs.json"
    out.write_text('{"steps": %d, "cases": [\n%s\n]}\n' % (STEPS, ",\n".join(map(json.dumps, cases))))
    failed = sum("error" in case for case in cases)
    print(f"{out}: {len(cases)} cases, {failed} of them errors, {out.stat().st_size} bytes")


main()
