"""OFT and BOFT: orthogonal rotations of a layer's outputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, float32


@dataclass(frozen=True, eq=False)
class OFT(Factors):
    """``s R^T W - W``, with R a block-diagonal rotation of outputs (arXiv:2306.07280).

    R is the Cayley transform ``(I + Q)(I - Q)^-1`` of ``Q = B - B^T``. A constraint (COFT) is an
    upper bound of the norm of all Q together.
    """

    blocks: Tensor
    """B, ``(blocks, size, size)``; R itself if `is_rotation`, as in LyCORIS' first layout."""
    is_rotation: bool
    constraint: float
    """``alpha * outputs`` as in kohya's and LyCORIS' files; 0 means none."""
    rescale: Tensor | None
    """s, one number per output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_blocks(self.blocks, 3, self.rescale)

    @property
    def outputs(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    def of(self, original: Tensor) -> Tensor:
        blocks = float32(self.blocks, original.device)
        if self.is_rotation:
            rotation = blocks - torch.eye(blocks.shape[-1], device=blocks.device)
        else:
            rotation = _rotation_minus_identity(blocks, self.constraint)
        rows = original.reshape(*blocks.shape[:2], -1)
        delta = (rotation.mT @ rows).view(original.shape)
        return _rescaled(delta, original, self.rescale)


@dataclass(frozen=True, eq=False)
class BOFT(Factors):
    """``s R_m ... R_1 W - W``, with butterfly rotations of outputs (arXiv:2311.06243).

    Stage i pairs outputs at distance ``2^i size / 2`` and rotates within blocks of such pairs.
    """

    blocks: Tensor
    """``(stages, blocks, size, size)``."""
    constraint: float
    rescale: Tensor | None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_blocks(self.blocks, 4, self.rescale)
        stages, _, size, _ = self.blocks.shape
        if size % 2 or self.outputs % (size << (stages - 1)):
            raise ShapeMismatch(
                f"{stages} butterfly stages of size {size} for {self.outputs} outputs"
            )

    @property
    def outputs(self) -> int:
        return self.blocks.shape[1] * self.blocks.shape[2]

    def of(self, original: Tensor) -> Tensor:
        rotations = _rotation_minus_identity(float32(self.blocks, original.device), self.constraint)
        stages, count, size, _ = rotations.shape
        delta = torch.zeros_like(original).flatten(1)
        weight = original.flatten(1)
        for stage in range(stages):
            distance = (size << stage) // 2
            paired = (weight + delta).unflatten(0, (-1, 2, distance)).transpose(1, 2)
            change = rotations[stage] @ paired.reshape(count, size, -1)
            change = change.reshape(paired.shape).transpose(1, 2)
            delta = delta + change.reshape(delta.shape)
        return _rescaled(delta.view(original.shape), original, self.rescale)


def _check_blocks(blocks: Tensor, axes: int, rescale: Tensor | None) -> None:
    if blocks.ndim != axes or blocks.shape[-1] != blocks.shape[-2]:
        raise ShapeMismatch(f"rotation blocks of shape {tuple(blocks.shape)}")
    outputs = blocks.shape[-3] * blocks.shape[-2]
    if rescale is not None and rescale.numel() != outputs:
        raise ShapeMismatch(f"rescale of shape {tuple(rescale.shape)} for {outputs} outputs")


def _rotation_minus_identity(blocks: Tensor, constraint: float) -> Tensor:
    """``R - I = 2 (I - Q)^-1 Q``, which avoids cancellation for small rotations."""
    skew = blocks - blocks.mT
    if constraint > 0:
        norm = torch.linalg.vector_norm(skew)
        skew = skew * (constraint / norm.clamp_min(constraint))
    identity = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve(identity - skew, 2 * skew)


def _rescaled(delta: Tensor, original: Tensor, rescale: Tensor | None) -> Tensor:
    if rescale is None:
        return delta
    factor = float32(rescale, original.device).view(-1, *[1] * (original.ndim - 1))
    return factor * delta + (factor - 1) * original
