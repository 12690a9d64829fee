"""Blending latents so that unmasked areas do not change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentMask:
    """Which latents of a batch are generated, and the original latents of the rest.

    Like A1111, blend *after* denoising: after each evaluation with guidance, the predicted clean
    latents are blended before the solver steps, and once more the final latents. (A1111's DDIM,
    PLMS and UniPC blend before denoising instead, clean latents into noisy ones, which by its own
    comment smooths too much; here all solvers blend after denoising.)
    """

    mask: Tensor
    """`(B, 1, H/8, W/8)` in [0, 1], 1 where generated; device and dtype of `original`."""
    original: Tensor
    """`(B, C, H/8, W/8)`: the clean latents of the initial images."""

    @classmethod
    def from_masks(cls, masks: Sequence[Tensor | None], original: Tensor) -> "LatentMask | None":
        """Combine the masks `(1, 1, H/8, W/8)` of a batch; None among them: generate everywhere.

        Returns None if no picture of the batch has a mask.
        """
        if all(mask is None for mask in masks):
            return None
        everywhere = torch.ones(1, 1, *original.shape[-2:])
        joined = torch.cat([everywhere if mask is None else mask for mask in masks])
        return cls(joined.to(original), original)

    def blend(self, clean: Tensor) -> Tensor:
        """The predicted clean latents where the mask is 1, the original latents where it is 0."""
        return clean * self.mask + self.original * (1 - self.mask)
