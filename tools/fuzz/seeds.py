"""Seeds of the fuzz targets, in corpus/<target>, out of the tests' own files: seeds.py PATH/TO/tests/golden"""
import gzip
import json
import math
import pathlib
import struct
import sys
import zipfile
import zlib

golden = pathlib.Path(sys.argv[1])
count = 0


def seed(target, data):
    global count
    folder = pathlib.Path("corpus") / target
    folder.mkdir(parents=True, exist_ok=True)
    count += 1
    (folder / f"seed-{count:03}").write_bytes(data if isinstance(data, bytes) else data.encode())


def two(first, second):
    """As `denoir_fuzz::two` cuts it."""
    first, second = (x if isinstance(x, bytes) else x.encode() for x in (first, second))
    return struct.pack("<H", min(len(first), 65535)) + first + second


def tensors(header, size, raw=True):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size) if raw else two(text, bytes(size))


for name in ["tiny_ddpm/unet/diffusion_pytorch_model.safetensors", "tiny_ddpm.safetensors"]:
    seed("safetensors", (golden / name).read_bytes())
one = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}
for raw in (True, False):
    seed("safetensors", tensors(one, 22, raw))

saved = (golden / "torch_save.bin").read_bytes()
seed("torch", saved)
seed("zip", saved)
with zipfile.ZipFile(golden / "torch_save.bin") as archive:
    pickle = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
seed("pickle", pickle)
seed("torch", two(pickle, bytes(64)))
with zipfile.ZipFile("corpus/zip/small", "w") as archive:
    archive.writestr("a/data.pkl", pickle)
    archive.writestr("a/byteorder", "little")

file = json.loads(gzip.decompress((golden / "single_files.json.gz").read_bytes()))["tiny_sd1"]["file"]
seed("single", "".join(f"{name} {' '.join(map(str, shape))}\n" for name, shape in file.items()))
for path in golden.glob("lora/*.safetensors"):
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    seed("single", two(whole[8:header], whole[header:]))

for path in [*golden.glob("tiny_ddpm/**/*.json"), *golden.glob("tiny_ddpm/*.json")]:
    seed("json", path.read_text())
seed("json", json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.bin"}}))
for case in json.loads((golden / "schedulers.json").read_text())["cases"][::3]:
    config = case["config"]
    seed("json", config if isinstance(config, str) else json.dumps(config))
for book in ["unet_names.json", "diffusers_names.json"]:
    for entry in json.loads((golden / book).read_text()).values():
        if "config" in entry:
            seed("json", json.dumps(entry["config"]))
scheduler = (golden / "tiny_ddpm/scheduler/scheduler_config.json").read_text()
seed("folder", two((golden / "tiny_ddpm/unet/config.json").read_text(), scheduler))
for text in [{"_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
              "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 4, "sample_size": 8},
             {"_class_name": "VQModel", "vq_embed_dim": 2, "norm_num_groups": 4, "block_out_channels": [8]}]:
    seed("folder", two(json.dumps(text), "{}"))
    seed("json", json.dumps(text))

recipe = """name = "a"
system = "ddpm"
image_size = 8
steps = 3
lr = 1e-3
[unet]
block_out_channels = [8, 8]
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
norm_num_groups = 4
attention_head_dim = 4
"""
vae = """system = "vae"
image_size = 8
kl_weight = 0.5
reconstruction = "l1"
[vae]
kind = "kl"
widths = [8, 8]
latent = 2
norm_num_groups = 4
"""
mlp = vae.replace('"kl"', '"mlp"').replace("l1", "bce")
for text in [recipe, vae, mlp, recipe.replace("ddpm", "ldm"), "lr=1e-3", "unet.block_out_channels=[16, 32]", "name=x"]:
    seed("recipe", text)
line = {"step": 3, "loss": 0.5, "grad_norm": 1.0, "lr": 1e-4, "images_per_s": 3.0, "seconds": 1.0}
judged = {"step": 2, "images": 4, "held_out": True, "reconstruction": 1.0, "kl": 2.0, "psnr": 20.0, "ssim": 0.5,
          "active_units": 3, "units": 4}
seed("run", two(recipe, "".join(json.dumps(x) + "\n" for x in (line, judged, line | {"step": 4, "kl": 1.0}))))
seed("run", json.dumps({"format": 1, "adapter": "a", "driver": "b", "wgpu": "30", "checked": False, "choices": [
    {"launch": "l", "shape_class": "s", "kernels": "k", "variant": "v", "ms": 0.1, "default": "d", "default_ms": 0.2,
     "refused": [{"variant": "w", "why": "slow"}]}]}))
for text in (recipe, vae):
    header = {"__metadata__": {"denoir": json.dumps({"format": 1, "step": 3, "recipe": text})}, **one}
    for raw in (True, False):
        seed("checkpoint", tensors(header, 22, raw))

# Two latents of tests/golden/folders/vq, and two of the target's noise.
way = {"denoir_noise": json.dumps({"steps": 4, "spacing": "leading", "class": 1})}
for name, shape, said in [("latents", [2, 2, 4, 4], {}), ("latents", [2, 2, 4, 4], {"denoir_vae": "-"}), ("noise", [2, 3, 2, 1], way)]:
    size = 4 * math.prod(shape)
    header = {"__metadata__": said, name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    for raw in (True, False):
        seed("latents", tensors(header, size, raw))

# Which file, and a prompt, as the target cuts them.
TOKENIZER = ["tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"]
for layout in json.loads(gzip.decompress((golden / "tokenizer.json.gz").read_bytes()))["folders"]:
    for name, text in layout["files"].items():
        seed("tokenizer", bytes([TOKENIZER.index(name)]) + two(text, "A red<|ENDOFTEXT|>'s cat! <Cat>\u00e9 42"))
for path in sorted(golden.glob("parquet/data/*.parquet")):
    whole = path.read_bytes()
    seed("parquet", b"\0\0" + whole)
    # The end alone: the target puts its length behind it.
    size = struct.unpack("<I", whole[-8:-4])[0]
    seed("parquet", two(whole[-8 - size : -8], whole[: -8 - size]))

images = struct.pack(">4I", 0x803, 2, 8, 8) + bytes(range(128))
seed("data", two(images, struct.pack(">2I", 0x801, 2) + b"\1\2"))
seed("data", gzip.compress(images, mtime=0))
seed("data", two(b"\3" + bytes(3072), "".join(f"{n}\n" for n in range(10))))


def png(w, h, colour, channels):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes((x * 7 + y) % 256 for x in range(w * channels)) for y in range(h))
    head = struct.pack(">2I5B", w, h, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
    seed("picture", png(9, 7, colour, channels))
seed("picture", b"P6 3 2 255\n" + bytes(range(18)))
seed("picture", b"P2 2 2 9\n1 2\n3 4\n")
seed("picture", b"qoif" + struct.pack(">2I", 4, 4) + b"\3\0" + b"\xfe\1\2\3" + b"\xc0" * 15 + bytes(7) + b"\1")
seed("picture", b"GIF89a\2\0\2\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\2\0\2\0\0\2\3D\2\5\0;")
seed("picture", b"BM" + struct.pack("<IHHI", 70, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 24, 0, 16, 1, 1, 0, 0) + bytes(16))
print(f"{count} seeds")
