"""Key-to-shape tables of adapter files as trainers write them, kept short in `fixtures/`.

A line is a key and a shape (`-` for a number). Braces stand for every one of a list (`{q,k,v,out}`)
or of a range (`{0..11}`).
"""

import itertools
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

_FIXTURES = Path(__file__).parent / "fixtures"
_BRACES = re.compile(r"\{([^}]*)\}")

TABLES = sorted(path.stem for path in _FIXTURES.glob("*.txt"))


def key_table(name: str) -> dict[str, tuple[int, ...]]:
    """The table's shapes by key."""
    table: dict[str, tuple[int, ...]] = {}
    for line in (_FIXTURES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pattern, shape = line.split(" ")
        sizes = () if shape == "-" else tuple(int(size) for size in shape.split(","))
        for key in _expanded(pattern):
            assert key not in table, key
            table[key] = sizes
    return table


def write_table(path: Path, name: str) -> None:
    """Write a file of the table's tensors, all zero but for alphas of 1, in float16."""
    tensors = {
        key: torch.zeros(shape, dtype=torch.float16) if shape else torch.tensor(1.0)
        for key, shape in key_table(name).items()
    }
    save_file(tensors, path)


def _expanded(pattern: str) -> list[str]:
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(braced: str) -> list[str]:
    first, dots, last = braced.partition("..")
    return [str(n) for n in range(int(first), int(last) + 1)] if dots else braced.split(",")
