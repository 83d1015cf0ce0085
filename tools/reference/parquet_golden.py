"""Parquet files with captions: parquet_golden.py OUT [--all]

    parquet/data/train-00000-of-00002.parquet, ...   six pictures of 8 x 8 with a caption each, as the library `datasets`
                                                     (push_to_hub) writes them: image = struct of bytes and path, snappy,
                                                     the library's note on the features; a test file with labels beside them

--all writes the same in every form that is read (compressions, versions of pages, with and without dictionaries, small pages
and groups), for the check of the reader by hand: `denoir data parquet:FILE` of each says the same. Needs pyarrow.
"""
import io
import itertools
import json
import pathlib
import struct
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq


def png(rgb):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes(rgb) * 8 for _ in range(8))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 8, 8, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def colour(i):
    return [40 * i, 255 - 40 * i, 7 * i]


def text(i):
    return f"a square of colour {i}"


def lists(i):
    return [text(i)] if i % 2 else [text(i), f"number {i}", "a picture"]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(rows, **columns):
    images = pa.array([{"bytes": png(colour(i)), "path": f"{i}.png"} for i in rows], IMAGE)
    features = {"image": {"_type": "Image"}}
    arrays = {"image": images}
    for name, (kind, of) in columns.items():
        arrays[name] = pa.array([of(i) for i in rows], kind)
        names = {"names": ["dark", "light", "other"], "_type": "ClassLabel"} if name == "label" else {"dtype": "string", "_type": "Value"}
        features[name] = names
    made = pa.table(arrays)
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


TEXT = {"text": (pa.string(), text)}
LISTS = {"text": (pa.list_(pa.string()), lists)}
LABEL = {"label": (pa.int64(), lambda i: i % 2)}


def main(out):
    folder = out / "parquet" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(range(4), **TEXT), folder / "train-00000-of-00002.parquet")
    pq.write_table(table(range(4, 6), **TEXT), folder / "train-00001-of-00002.parquet")
    pq.write_table(table(range(6), **LISTS, **LABEL), folder / "test-00000-of-00001.parquet", row_group_size=4)


def all_forms(out):
    for codec, version, dictionary, page, lists_too in itertools.product(
            ["none", "snappy", "gzip", "zstd"], ["1.0", "2.0"], [True, False], [1, 1 << 20], [True, False]):
        name = f"{codec}-{version}-{'dictionary' if dictionary else 'plain'}-{page}-{'lists' if lists_too else 'text'}.parquet"
        columns = LISTS if lists_too else TEXT
        pq.write_table(table([i % 6 for i in range(300)], **columns, **LABEL), out / name, compression=codec, data_page_version=version,
                       use_dictionary=dictionary, data_page_size=page, row_group_size=128, write_batch_size=16)


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    (all_forms if "--all" in sys.argv else main)(target)
