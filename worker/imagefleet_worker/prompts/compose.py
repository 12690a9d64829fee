"""Prompts joined by the word AND, each with a weight, as A1111 v1.10 splits them.

All of them guide every step together (Liu et al., arXiv 2206.01714): the guidance is the sum of
weight times (prompt - negative prompt), times the guidance scale.
"""

import math
import re

from imagefleet_shared.errors import InvalidRequest

_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")


def split_and(text: str) -> list[tuple[str, float]]:
    """The prompts in order, with their weights: `a AND b :1.2` is a at 1 and b at 1.2.

    Brackets are ignored. A plain number after the last colon is the weight, even without any AND:
    `ratio 16:9` is "ratio 16" at 9. Weights may be 0 or negative. Whitespace after a prompt and
    around its colon is dropped; whitespace before it is kept.

    For prompts only: in a negative prompt A1111 reads AND and a final number as text.

    Raises:
        InvalidRequest: a weight exceeds a float's range.
    """
    return [_split_weight(part.rstrip()) for part in _AND.split(text)]


def _split_weight(part: str) -> tuple[str, float]:
    before, colon, after = part.rpartition(":")
    number = _NUMBER.fullmatch(after) if colon else None
    if number is None:
        return part, 1.0
    weight = float(number[1])
    if not math.isfinite(weight):
        raise InvalidRequest(f"weight {number[1][:40]!r} behind a prompt is too large")
    return before.rstrip(), weight
