"""CLIP's tokenizer against transformers' on random strings.

tokenizer.py                        writes tests/golden/tokenizer.json.gz: 2,000 strings and their ids, and small folders
                                    in every layout with ids of their own
tokenizer.py COUNT COMMAND [ARG..]  compares COUNT strings of another seed with what a program makes of them: it is
                                    given a folder of the tokenizer, reads a JSON string a line, and prints a JSON list a line

The vocabulary is that of tests/golden/clip_merges.txt.gz. Strings mix words, scripts, combining marks, emoji, control
characters and special tokens. Code points that Python's Unicode tables (3.11: Unicode 14) do not know are left out: the
libraries' tables are of different ages. The library's own are older still, so that a rare mark is not put in its place:
1 string of 10,000 differs, by U+0D3B before U+0A3C.
"""
import gzip
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import transformers

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden"
BLOCKS = [(0x20, 0x7f), (0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xe80), (0x1100, 0x1200),
          (0x1e00, 0x2070), (0x2070, 0x2c00), (0x3000, 0x3400), (0x4e00, 0x4f00), (0xac00, 0xad00), (0xf900, 0x10000), (0x1d400, 0x1d800),
          (0x1f300, 0x1fa00), (0x0, 0x20), (0x7f, 0xa0), (0x10000, 0x11000), (0x0, 0x110000)]
WORDS = ["a photo of a cat", "CAT", "İstanbul", "ΟΔΟΣ", "don't", "'LL", "'s", "''d", "2024", "½²", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>",
         "<|EndOfText|> ", "&lt;b&gt;", "\u0301", "\u0323", "\u0307", "</w>", "a</w>", "\u200b", "\u3000", "\u00a0", "\u2028", "\r\n", "\t", "\0", "\ufeff", "ﬁ",
         "\U0001f468\u200d\U0001f469\u200d\U0001f467", "각", "\u1100\u1161\u11a8", "ㅎ", "日本の猫", "кошка", "<Cat-Toy>", "<b>", "!", "!!", "@", "...", "\u0130", "\u212b", "ẞ", "Ǆ"]


TINY = "i n;r e;re d</w>;c i;ci r;cir c;l e</w>;circ le</w>".split(";")


def folder(path, merges, files=()):
    """vocab.json and merges.txt as the layout of CLIP's vocabulary gives them, and other files."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(b) for b in printed] + [chr(256 + n) for n in range(68)]
    tokens = chars + [c + "</w>" for c in chars] + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    for name, value in dict(files).items():
        (path / f"{name}.json").write_text(json.dumps(value))


def read(path):
    return transformers.CLIPTokenizer.from_pretrained(path)


def folders(root):
    """Folders as they are found: those of Stable Diffusion 1 and 2, with words of textual inversion, of transformers 4
    and of 5, and a tokenizer.json with merges as they were."""
    def token(content, normalized=True, **more):
        return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False, **more)

    bos, eos = "<|startoftext|>", "<|endoftext|>"
    usual = dict(add_prefix_space=False, do_lower_case=True, errors="replace", model_max_length=77, tokenizer_class="CLIPTokenizer")
    config = usual | dict(bos_token={"__type": "AddedToken", **token(bos)}, eos_token={"__type": "AddedToken", **token(eos)}, pad_token=eos)
    special = dict(bos_token=token(bos), eos_token=token(eos), unk_token=token(eos), pad_token=eos)
    decoder = {"0": token("!", False, special=True), "520": token(bos, special=True), "521": token(eos, special=True),
               "522": token("<Cat>", special=False), "523": token("<Dog>", False, special=False)}
    layouts = {
        "bare": {},
        "sd1": dict(special_tokens_map=special, tokenizer_config=config),
        "sd2": dict(special_tokens_map=special | dict(pad_token="!"), tokenizer_config=config),
        "inversion": dict(special_tokens_map=special, tokenizer_config=config, added_tokens={"<b>x": 524, "<Cat>": 522, "<b>": 523}),
        "newer": dict(tokenizer_config=usual | dict(bos_token=bos, eos_token=eos, pad_token="!", added_tokens_decoder=decoder)),
    }
    for name, files in layouts.items():
        folder(root / name, TINY, files)
    read(root / "newer").save_pretrained(root / "whole")
    whole = json.loads((root / "whole/tokenizer.json").read_text())
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    (root / "whole_older").mkdir()
    (root / "whole_older/tokenizer.json").write_text(json.dumps(whole))
    (root / "whole_older/tokenizer_config.json").write_text(json.dumps(dict(pad_token="!")))
    texts = ["A red circle!", "blue\u00e9 42", "", "<|ENDOFTEXT|>'s!!", "<|StartOfText|>s", "a<Cat><cat>!", "<B>x<b><DOG><Dog>in"]
    for name in [*layouts, "whole", "whole_older"]:
        path = root / name
        tokenizer = read(path)
        cases = [[text, tokenizer(text)["input_ids"][1:-1]] for text in texts]
        yield dict(name=name, files={file.name: file.read_text() for file in sorted(path.iterdir())}, size=len(tokenizer),
                   pad=tokenizer.pad_token_id, cases=cases)


def strings(count, seed):
    rng = random.Random(seed)

    def known(c):
        return unicodedata.category(c) not in ("Cn", "Cs")

    def some():
        if rng.random() < 0.3:
            return rng.choice(WORDS)
        low, high = rng.choice(BLOCKS)
        text = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 9)))
        return "".join(c for c in text if known(c)) + rng.choice(["", "", " "])

    return ["".join(some() for _ in range(rng.randrange(1, 9))) for _ in range(count)]


def main():
    merges = gzip.open(GOLDEN / "clip_merges.txt.gz", "rt", encoding="utf-8").read().splitlines()
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        path = root / "clip"
        folder(path, merges)
        theirs = read(path)
        ids = lambda text: theirs(text)["input_ids"][1:-1]
        if len(sys.argv) == 1:
            golden = dict(random=[[text, ids(text)] for text in strings(2000, 19)], folders=[*folders(root)])
            text = json.dumps(golden, separators=(",", ":"))
            (GOLDEN / "tokenizer.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
            return
        texts = strings(int(sys.argv[1]), 20)
        ours = subprocess.run([*sys.argv[2:], path], input="".join(json.dumps(t) + "\n" for t in texts), capture_output=True, text=True, check=True)
        answers = [json.loads(line) for line in ours.stdout.splitlines()]
        assert len(answers) == len(texts)
        wrong = [(text, ids(text), answer) for text, answer in zip(texts, answers) if ids(text) != answer]
        for text, theirs_, ours_ in wrong[:20]:
            print(ascii(text), theirs_, ours_, sep="\n  ")
        print(f"{len(wrong)} of {len(texts)} differ")


main()
