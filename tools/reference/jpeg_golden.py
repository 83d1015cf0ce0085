"""Writes tests/golden/jpeg: one picture as JPEG files of every kind that Pillow makes (baseline and progressive, with and
without restart markers and subsampling, RGB, grey and CMYK). `python jpeg_golden.py FOLDER`; made with Pillow 13."""

import itertools
import math
import sys
from pathlib import Path

from PIL import Image

W, H = 70, 45
rgb = Image.new("RGB", (W, H))
rgb.putdata(
    [(int(127 + 120 * math.sin(x / 9 + y / 17)), x * 3 % 256, (y * 5 + x) % 256) for y in range(H) for x in range(W)]
)
for mode, name in [("RGB", "rgb"), ("L", "grey"), ("CMYK", "cmyk")]:
    for progressive, restarts, subsampling in itertools.product([0, 1], [0, 1], [0, 2] if mode == "RGB" else [0]):
        options = {"quality": 80, "progressive": bool(progressive), "optimize": True}
        if mode == "RGB":
            options["subsampling"] = subsampling
        if restarts:
            options["restart_marker_rows"] = 1
        file = f"{name}-p{progressive}-s{subsampling}-r{restarts}.jpg"
        rgb.convert(mode).save(Path(sys.argv[1]) / file, **options)
