"""Files to damage, and the damage."""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
import zlib



def png(rng, side=16):
    """A grey or a coloured picture."""
    channels = rng.choice((1, 3))
    number = lambda n: struct.pack(">I", n)
    chunk = lambda kind, data: number(len(data)) + kind + data + number(zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes(rng.randrange(256) for _ in range(channels * side)) for _ in range(side))
    head = struct.pack(">2I5B", side, side, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(rng, side=24):
    """A grey baseline JPEG: blocks of 8 x 8 with their means and a few waves."""
    segment = lambda kind, data: bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data
    table = lambda kind, counts, symbols: bytes([kind, *counts, *[0] * (16 - len(counts))]) + bytes(symbols)
    # Means: sizes 0 to 6 of the difference, 3 bits each. Waves: end of block `0`, one step of size 1 `10`.
    tables = table(0x00, [0, 0, 7], range(7)) + table(0x10, [1, 1], [0x00, 0x01])
    bits = ""
    for _ in range((side // 8) ** 2):
        size = rng.randrange(7)
        bits += f"{size:03b}" + "".join(rng.choice("01") for _ in range(size))
        bits += "".join("10" + rng.choice("01") for _ in range(rng.randrange(6))) + "0"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    head = struct.pack(">BHHB3B", 8, side, side, 1, 1, 0x11, 0)
    return (
        b"\xff\xd8" + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + segment(0xDB, b"\0" + b"\x10" * 64)
        + segment(0xC0, head) + segment(0xC4, tables) + segment(0xDA, b"\1\1\0\0\x3f\0") + data + b"\xff\xd9"
    )  # fmt: skip


def idx(rng, images):
    """MNIST's files of 40 images: the images, or their labels."""
    if images:
        return struct.pack(">4I", 0x803, 40, 28, 28) + rng.randbytes(40 * 28 * 28)
    return struct.pack(">2I", 0x801, 40) + bytes(rng.randrange(10) for _ in range(40))


def read_safetensors(path):
    data = path.read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    span = lambda tensor: slice(*(begin + at for at in tensor["data_offsets"]))
    return {name: (tensor["shape"], data[span(tensor)]) for name, tensor in header.items()}


def torch_bin(tensors):
    """What torch.save writes of f32 tensors: a zip with a pickle, whose storages are files of their own."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_):
        pass

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    storage = type("FloatStorage", (), {"__module__": "torch"})
    utils._rebuild_tensor_v2, torch.FloatStorage, torch._utils = rebuild, storage, utils

    class Tensor:
        def __init__(self, number, shape, data):
            self.number, self.shape, self.elements = number, shape, len(data) // 4

        def __reduce__(self):
            strides = [1]
            for n in reversed(self.shape[1:]):
                strides.insert(0, strides[0] * n)
            strides = tuple(strides[: len(self.shape)])
            return rebuild, (Storage(self), 0, tuple(self.shape), strides, False, {})

    class Storage:
        def __init__(self, tensor):
            self.id = ("storage", storage, str(tensor.number), "cpu", tensor.elements)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.id if isinstance(value, Storage) else None

    text, out = io.BytesIO(), io.BytesIO()
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        Pickler(text, 2).dump({n: Tensor(i, *tensor) for i, (n, tensor) in enumerate(tensors.items())})
    finally:
        del sys.modules["torch"], sys.modules["torch._utils"]
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/data.pkl", text.getvalue())
        archive.writestr("model/byteorder", "little")
        for i, (_, data) in enumerate(tensors.values()):
            archive.writestr(f"model/data/{i}", data)
        archive.writestr("model/version", "3\n")
    return out.getvalue()


def damage(rng, data):
    """Changed bytes, and what was done to them."""
    while True:
        new, size = bytearray(data), len(data)
        # Headers lie at the beginning or the end, and are small.
        spans = [(0, size), (0, min(size, 256)), (0, min(size, 16384)), (max(0, size - 256), size)]
        first, last = rng.choice(spans)
        at = rng.randrange(first, last) if size else 0
        block = min(rng.choice((1, 4, 16, 64, 512, 4096)), max(size - at, 0))
        how = rng.choice(("bit", "bit", "bits", "byte", "cut", "extension", "zeros", "swap", "empty"))
        if how == "bit" and size:
            new[at] ^= 1 << rng.randrange(8)
        elif how == "bits" and size:
            for _ in range(rng.randint(2, 32)):
                new[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        elif how == "byte" and size:
            new[at] = rng.randrange(256)
        elif how == "cut":
            del new[at:]
        elif how == "extension":
            new += rng.choice((bytes, rng.randbytes))(rng.choice((1, 8, 1000, 70000)))
        elif how == "zeros":
            new[at : at + block] = bytes(block)
        elif how == "swap" and size > 2 * block:
            other = rng.randrange(size - block)
            here, there = slice(at, at + block), slice(other, other + block)
            if abs(other - at) >= block and at + block <= size:
                new[here], new[there] = new[there], new[here]
        elif how == "empty":
            new.clear()
        if new != data:
            return bytes(new), f"{how} at {at}"
