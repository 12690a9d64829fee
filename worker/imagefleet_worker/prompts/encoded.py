"""Encoded texts, and their batching for the UNet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The output of the text encoders for one text."""

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
    """Pad texts to the same number of windows with encoded empty windows.

    Args:
        texts: none has more windows than that.
        empty: the empty text, encoded with the same settings.
        windows: number of windows of each returned text.
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


def stack_rows(rows: Sequence[EncodedText]) -> tuple[Tensor, Tensor | None]:
    """Stack texts of equal length: hidden `(B, tokens, width)` and SDXL's pooled `(B, width)`."""
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return torch.stack([row.hidden for row in rows]), torch.stack(pooled) if pooled else None


def zeros_like(text: EncodedText) -> EncodedText:
    """Zeros with the shapes of a text."""
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return EncodedText(torch.zeros_like(text.hidden), pooled)
