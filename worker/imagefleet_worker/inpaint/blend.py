"""Denoising that keeps what is not masked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentMask:
    """Which latents of a batch are drawn, and what the others stay at.

    A1111 blends *after* denoising: each time the model has been evaluated and guidance applied, in
    the estimate of the clean latents, before the solver steps; and once more in the last latents.
    (Its DDIM, PLMS and UniPC blend before denoising instead, clean latents into noisy ones, which
    A1111's own comment says smooths too much; we blend alike for every solver.)
    """

    mask: Tensor
    """`(B, 1, H/8, W/8)` in [0, 1], 1 where drawn; on the device and of the dtype of `kept`."""
    kept: Tensor
    """`(B, C, H/8, W/8)`: the clean latents, before noise was added."""

    @classmethod
    def of(cls, masks: Sequence[Tensor | None], kept: Tensor) -> "LatentMask | None":
        """The masks `(1, 1, H/8, W/8)` of a batch, over its clean latents; None: drawn everywhere.

        Returns None where no picture of the batch has a mask.
        """
        if all(mask is None for mask in masks):
            return None
        everywhere = torch.ones(1, 1, *kept.shape[-2:])
        joined = torch.cat([everywhere if mask is None else mask for mask in masks])
        return cls(joined.to(kept), kept)

    def blend(self, clean: Tensor) -> Tensor:
        """The estimate where it is drawn, the kept latents elsewhere."""
        return clean * self.mask + self.kept * (1 - self.mask)
