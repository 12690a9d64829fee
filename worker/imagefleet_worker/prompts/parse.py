r"""Parsing emphasis brackets into weighted pieces of text, as A1111 v1.10 does.

`(x)` multiplies by 1.1, `[x]` divides by 1.1, `(x:1.3)` multiplies by 1.3. Brackets nest and
multiply; an unclosed bracket extends to the end. `\(`, `\)`, `\[`, `\]` and `\\` are the characters
themselves; any other backslash is dropped. An unmatched closing bracket is text.
"""

import re

import numpy as np

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.prompts.schedule import parse_schedule

__all__ = ["BREAK", "parse_attention", "parse_schedule"]

BREAK = ("BREAK", -1.0)
"""The piece that ends a window. A BREAK inside brackets has another weight and is just a word."""

_ROUND, _SQUARE = 1.1, 1 / 1.1
# Every character belongs to exactly one match, and no alternative runs past the end of another, so
# matching takes time linear in the text's length.
_TOKEN = re.compile(r"\\[\\()\[\]]?|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK_WORD = re.compile(r"\bBREAK\b")


def parse_attention(text: str) -> list[tuple[str, float]]:
    """The pieces in order, adjacent ones of equal weight joined; `BREAK` for a break.

    Weights equal A1111's bit for bit: they are multiplied bracket by bracket, in the order in which
    the brackets close. They may be zero, negative or, with extreme nesting, infinite. An empty text
    is one empty piece. The time is linear, plus one vector multiplication per bracket.

    Raises:
        InvalidRequest: a weight such as `(x:1.2.3)` is not a number.
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
        # A text has at most as many pieces as characters: BREAK makes three and has five.
        self._weights = np.ones(text_length, dtype=np.float64)

    def add(self, text: str, weight: float = 1.0) -> None:
        self._texts.append(text)
        self._weights[self.count] = weight
        self.count += 1

    def add_text(self, text: str) -> None:
        """Add a piece, split at each word BREAK; whitespace around BREAK is dropped."""
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
        # They overflow to infinity without a warning, as Python's own floats do.
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
