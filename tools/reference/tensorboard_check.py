"""Reads the events of a run back with TensorBoard itself, and compares them with metrics.jsonl.

    python3 -m venv tb && tb/bin/pip install tensorboard "setuptools<81"
    denoir train digits --steps 20 --set tensorboard=true --out run
    tb/bin/python tools/reference/tensorboard_check.py run
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.text import metadata as text_metadata

FAMILIES = ("loss_by_t", "weighted_by_t", "accuracy_by_t")


def png_size(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:8]
    return struct.unpack(">II", data[16:24])


def numbers(line):
    """The scalars that a line of metrics.jsonl stands for."""
    for key, value in line.items():
        if key in FAMILIES:
            yield from ((f"{key}/{i + 1}", v) for i, v in enumerate(value) if v is not None)
        elif key != "step":
            yield key, value


def main(run):
    run = Path(run)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    wanted = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in numbers(line):
            wanted.setdefault(name, []).append((line["step"], value))
    for name, values in sorted(wanted.items()):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in values], (name, found, values)
        assert all(abs(a - b) <= 1e-6 * abs(b) for (_, a), (_, b) in zip(found, values)), name
        print(f"scalar {name}: {len(found)} steps, equal to metrics.jsonl")
    others = sorted(set(tags["scalars"]) - set(wanted))
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    for name in others:
        assert name.startswith("evaluation/"), name
        steps = [e.step for e in events.Scalars(name)]
        assert set(steps) <= {e["step"] for e in evaluations}, (name, steps)
        print(f"scalar {name}: steps {steps}")
    for name in tags["images"]:
        images = events.Images(name)
        for image in images:
            assert png_size(image.encoded_image_string) == (image.width, image.height), name
        print(f"image {name}: steps {[image.step for image in images]}, {images[-1].width}x{images[-1].height}")
    grids = [int(path.stem.split("-")[1]) for path in sorted((run / "samples").glob("step-*.png"))]
    assert [image.step for image in events.Images("samples")] == grids, grids
    for name in tags["tensors"]:
        plugin = events.SummaryMetadata(name).plugin_data.plugin_name
        assert plugin == text_metadata.PLUGIN_NAME, plugin
        text = events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
        recipe = (run / "recipe.toml").read_text()
        assert "\n".join(line[4:] for line in text.splitlines()) == recipe.rstrip("\n"), text
        print(f"text {name}: {len(text)} characters, equal to recipe.toml")
    print("TensorBoard reads all of it")


if __name__ == "__main__":
    main(sys.argv[1])
