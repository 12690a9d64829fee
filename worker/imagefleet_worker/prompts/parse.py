r"""A prompt's emphasis brackets as pieces of text with weights, as A1111 v1.10 lists them.

`(x)` times 1.1, `[x]` divided by 1.1, `(x:1.3)` times 1.3; brackets nest and multiply, and one
that is never closed reaches to the end. `\(`, `\)`, `\[`, `\]` and `\\` stand for the characters
themselves; any other backslash is dropped. A closing bracket with no opening one is text.
"""

import re

import numpy as np

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.prompts.schedule import parse_schedule

__all__ = ["BREAK", "parse_attention", "parse_schedule"]

BREAK = ("BREAK", -1.0)
"""The piece that ends a window. A BREAK inside brackets has another weight and is a mere word."""

_ROUND, _SQUARE = 1.1, 1 / 1.1
# Every character belongs to exactly one match, and no alternative can run over another's end, so
# that the time is linear in the text's length.
_TOKEN = re.compile(r"\\[\\()\[\]]?|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK_WORD = re.compile(r"\bBREAK\b")


def parse_attention(text: str) -> list[tuple[str, float]]:
    """The pieces in order, adjacent ones of equal weight joined; `BREAK` for a break.

    The weights are A1111's to the last bit: each is multiplied bracket by bracket, in the order in
    which they close. They may be zero, negative or, after absurd nesting, infinite. An empty text
    is one empty piece. The time is linear but for one vector multiplication a bracket.

    Raises:
        InvalidRequest: a weight such as `(x:1.2.3)` is no number.
    """
    pieces = _Pieces(len(text))
    round_brackets: list[int] = []
    square_brackets: list[int] = []
    for match in _TOKEN.finditer(text):
        token, weight = match[0], match["weight"]
        if token.startswith("\\"):
            pieces.add(token[1:])
        elif token == "(":
            round_brackets.append(pieces.count)
        elif token == "[":
            square_brackets.append(pieces.count)
        elif weight is not None and round_brackets:
            pieces.multiply(round_brackets.pop(), _number(weight, token))
        elif token == ")" and round_brackets:
            pieces.multiply(round_brackets.pop(), _ROUND)
        elif token == "]" and square_brackets:
            pieces.multiply(square_brackets.pop(), _SQUARE)
        else:
            pieces.add_text(token)
    for start in round_brackets:
        pieces.multiply(start, _ROUND)
    for start in square_brackets:
        pieces.multiply(start, _SQUARE)
    return pieces.joined()


class _Pieces:
    def __init__(self, text_length: int) -> None:
        self.count = 0
        self._texts: list[str] = []
        # No text has more pieces than characters: even BREAK, which makes three, has five.
        self._weights = np.ones(text_length, dtype=np.float64)

    def add(self, text: str, weight: float = 1.0) -> None:
        self._texts.append(text)
        self._weights[self.count] = weight
        self.count += 1

    def add_text(self, text: str) -> None:
        """Add a piece, or several where the word BREAK stands; the space around it is dropped."""
        first, *others = _BREAK_WORD.split(text)
        if not others:
            self.add(first)
            return
        self.add(first.rstrip())
        for other in others[:-1]:
            self.add(*BREAK)
            self.add(other.strip())
        self.add(*BREAK)
        self.add(others[-1].lstrip())

    def multiply(self, start: int, factor: float) -> None:
        """Multiply the weights of all pieces from `start` to the last."""
        # Beyond a float's range they become infinite, as Python's own floats do, without a warning.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            self._weights[start : self.count] *= factor

    def joined(self) -> list[tuple[str, float]]:
        runs: list[tuple[list[str], float]] = []
        for text, weight in zip(self._texts, self._weights[: self.count].tolist(), strict=True):
            if runs and runs[-1][1] == weight:
                runs[-1][0].append(text)
            else:
                runs.append(([text], weight))
        return [("".join(texts), weight) for texts, weight in runs] or [("", 1.0)]


def _number(weight: str, token: str) -> float:
    try:
        return float(weight)
    except ValueError as exc:
        raise InvalidRequest(
            f"weight {weight!r} in {token!r} is no number; write it as in (cat:1.3)"
        ) from exc
