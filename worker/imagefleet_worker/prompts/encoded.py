"""Encoded texts, and rows of them for the UNet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class EncodedText:
    """What the text encoders made of a text, whatever else they were given at the time."""

    hidden: Tensor
    """`(windows x 77, width)`; the text encoders' widths side by side."""
    pooled: Tensor | None
    """`(width,)`, SDXL only: the second text encoder's summary of the first window."""

    @property
    def size_bytes(self) -> int:
        return self.hidden.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


def pad_windows(
    texts: Sequence[EncodedText], empty: EncodedText, windows: int
) -> list[EncodedText]:
    """The texts with so many windows, the shorter ones filled up with empty ones.

    Args:
        texts: none has more.
        empty: the empty text, encoded with the same settings.
        windows: of each text returned.
    """
    length = windows * len(empty.hidden)
    assert all(len(text.hidden) <= length for text in texts), "a text has more windows than that"
    return [
        EncodedText(
            torch.cat([text.hidden, empty.hidden.repeat(windows, 1)[len(text.hidden) :]]),
            text.pooled,
        )
        if len(text.hidden) < length
        else text
        for text in texts
    ]


def stacked(rows: Sequence[EncodedText]) -> tuple[Tensor, Tensor | None]:
    """Texts of equal length as hidden `(B, tokens, width)` and, of SDXL's, pooled `(B, width)`."""
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return torch.stack([row.hidden for row in rows]), torch.stack(pooled) if pooled else None


def zeroed(text: EncodedText) -> EncodedText:
    """Zeros of a text's shapes."""
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return EncodedText(torch.zeros_like(text.hidden), pooled)
