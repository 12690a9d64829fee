"""Make CLIP's vocab.json and merges.txt from the word list inside the open_clip_torch wheel.

    pip download --no-deps open_clip_torch
    python tools/make_clip_tokenizer.py open_clip_torch-*.whl
    worker/imagefleet_worker/checkpoints/configs/tokenizer

The wheel is only read as a zip file; nothing in it is installed or run.
"""

import argparse
import gzip
import json
import zipfile
from pathlib import Path

WORD_LIST = "open_clip/bpe_simple_vocab_16e6.txt.gz"
END_OF_WORD = "</w>"
VOCABULARY_SIZE = 49_408
# The list has more merges than CLIP uses: bytes (256), bytes that end a word (256) and the two
# special tokens make up the rest of the vocabulary.
MERGES = VOCABULARY_SIZE - 256 - 256 - 2


def byte_characters() -> list[str]:
    """The 256 characters that represent bytes in CLIP's byte-level BPE, in its order.

    Bytes that are printable in Latin-1 represent themselves and come first; the others are mapped
    to characters from U+0100 on, so that no token contains a space or a control character.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    unprintable = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + unprintable)]]


def read_merges(wheel: Path) -> list[str]:
    """The merges that CLIP uses, "left right", by priority."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(WORD_LIST)).decode().splitlines()
    # Line 0 states the list's version.
    return lines[1 : MERGES + 1]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Token to id: bytes, bytes that end a word, merges, start and end of text."""
    single = byte_characters()
    tokens = single + [character + END_OF_WORD for character in single]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make CLIP's vocab.json and merges.txt.")
    parser.add_argument("wheel", type=Path, help="open_clip_torch-*.whl")
    parser.add_argument("out", type=Path, help="folder for vocab.json and merges.txt")
    arguments = parser.parse_args()
    merges = read_merges(arguments.wheel)
    ids = vocabulary(merges)
    if len(ids) != VOCABULARY_SIZE:
        raise SystemExit(f"{len(ids)} different tokens instead of {VOCABULARY_SIZE}: another list?")
    text = json.dumps(ids, ensure_ascii=False, separators=(",", ":"))
    (arguments.out / "vocab.json").write_text(text + "\n", encoding="utf-8")
    (arguments.out / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
