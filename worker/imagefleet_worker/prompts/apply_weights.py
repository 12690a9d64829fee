"""A prompt's weights, applied to what the text encoder made of it."""

import torch
from torch import Tensor

from imagefleet_shared.field_types import Emphasis


def apply_weights(hidden: Tensor, weights: Tensor, emphasis: Emphasis) -> Tensor:
    """Multiply each token's vector by its weight.

    With "original" a window is then scaled back to the mean that it had, over all of its tokens
    and channels. A1111 takes the mean over the batch; here a text's result is the same in every
    batch.

    Args:
        hidden: `(windows, 77, width)`, of any floating type; computed in float32, rounded once.
        weights: `(windows, 77)` float32 on the same device, finite.
        emphasis: the mode.

    Returns:
        A new tensor; windows in which every weight is 1 are the same bit for bit.
    """
    weighted = (weights != 1).any(dim=1)
    if emphasis not in ("original", "no_norm") or not weighted.any():
        return hidden
    before = hidden[weighted].float()
    after = before * weights[weighted, :, None]
    if emphasis == "original":
        mean = after.mean(dim=(1, 2), keepdim=True)
        # No factor restores a mean from 0: A1111 would go on with infinities.
        after *= torch.where(mean == 0, 1, before.mean(dim=(1, 2), keepdim=True) / mean)
    emphasised = hidden.clone()
    emphasised[weighted] = after.to(hidden.dtype)
    return emphasised
