"""Applying emphasis weights to a text encoder's hidden states."""

import torch
from torch import Tensor

from imagefleet_shared.field_types import Emphasis


def apply_weights(hidden: Tensor, weights: Tensor, emphasis: Emphasis) -> Tensor:
    """Multiply each token's vector by its weight.

    With "original" each window is then scaled to restore its mean over all tokens and channels.
    A1111 takes the mean over the batch; here a text's result is the same in every batch.

    Args:
        hidden: `(windows, 77, width)`, of any floating dtype; computed in float32, rounded once.
        weights: `(windows, 77)` float32 on the same device, finite.
        emphasis: the mode.

    Returns:
        The weighted hidden states; windows in which every weight is 1 are bitwise unchanged.
    """
    weighted = (weights != 1).any(dim=1)
    if emphasis not in ("original", "no_norm") or not weighted.any():
        return hidden
    before = hidden[weighted].float()
    after = before * weights[weighted, :, None]
    if emphasis == "original":
        mean = after.mean(dim=(1, 2), keepdim=True)
        # No factor restores a mean from 0: A1111 would produce infinities.
        after *= torch.where(mean == 0, 1, before.mean(dim=(1, 2), keepdim=True) / mean)
    emphasised = hidden.clone()
    emphasised[weighted] = after.to(hidden.dtype)
    return emphasised
