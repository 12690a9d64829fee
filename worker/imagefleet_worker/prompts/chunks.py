"""Token lists of any length as the fixed windows that CLIP reads.

CLIP sees 77 tokens: a start token, 75 of text, an end token. A longer text becomes several windows
of 75, each with its own start and end, as A1111 does it.
"""

from collections.abc import Sequence

START, END = 49406, 49407
"""CLIP's tokens for the start and the end of a text."""
WINDOW = 75
"""Text tokens in a window."""


def windows(tokens: Sequence[int], count: int, padding: int) -> list[list[int]]:
    """`count` windows of 77 tokens; the text fills the first of them, the rest are empty.

    Args:
        tokens: the text without start and end, at most `count` x 75.
        count: windows to make, so that texts of different length can share a batch.
        padding: token for the places after an early end.
    """
    pieces = [tokens[place : place + WINDOW] for place in range(0, count * WINDOW, WINDOW)]
    return [[START, *piece, END, *[padding] * (WINDOW - len(piece))] for piece in pieces]


def windows_needed(tokens: Sequence[int]) -> int:
    """How many windows a text fills; an empty one still takes one."""
    return max(1, -(-len(tokens) // WINDOW))
