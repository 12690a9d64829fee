"""Key-to-shape tables of adapter files, in the compact format of `fixtures/`.

The comments at the top of a table describe the file and link the public listing of a real file that
its names are from, or say that none was found; patterns of partial listings are extended to all
blocks of the network. A line is a key and a shape; a scalar is `-` if any value will do, or `true`
or `false`. Braces expand to a list (`{q,k,v,out}`) or a range (`{0..11}`).
"""

import itertools
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

_FIXTURES = Path(__file__).parent / "fixtures"
_BRACES = re.compile(r"\{([^}]*)\}")

_SCALARS = {"-": torch.tensor(1.0), "true": torch.tensor(1), "false": torch.tensor(0)}

TABLES = sorted(path.stem for path in _FIXTURES.glob("*.txt"))


def key_table(name: str) -> dict[str, tuple[int, ...]]:
    """The table's shapes by key."""
    return {
        key: () if shape in _SCALARS else tuple(int(size) for size in shape.split(","))
        for key, shape in _lines(name).items()
    }


def sources(name: str) -> str:
    """The comments at the top of the table."""
    lines = (_FIXTURES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("# "))


def write_table(path: Path, name: str) -> None:
    """Write a file with the table's tensors: float16 zeros, and its scalars."""
    shapes = key_table(name)
    tensors = {
        key: _SCALARS[shape].clone()
        if shape in _SCALARS
        else torch.zeros(shapes[key], dtype=torch.float16)
        for key, shape in _lines(name).items()
    }
    save_file(tensors, path)


def _lines(name: str) -> dict[str, str]:
    lines: dict[str, str] = {}
    for line in (_FIXTURES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            continue
        pattern, shape = line.split(" ")
        for key in _expanded(pattern):
            assert key not in lines, key
            lines[key] = shape
    return lines


def _expanded(pattern: str) -> list[str]:
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(braced: str) -> list[str]:
    first, dots, last = braced.partition("..")
    return [str(n) for n in range(int(first), int(last) + 1)] if dots else braced.split(",")
