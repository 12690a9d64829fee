"""OFT and BOFT: outputs of a layer rotated among each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, float32


@dataclass(frozen=True, eq=False)
class OFT(Factors):
    """``s R^T W - W``, R rotating within blocks of outputs (arXiv:2306.07280).

    R is Cayley's transform ``(I + Q)(I - Q)^-1`` of ``Q = B - B^T``. With a constraint (COFT) the
    norm of all Q together is held under it.
    """

    blocks: Tensor
    """B, ``(blocks, size, size)``; R itself where `is_rotation`, LyCORIS' first layout."""
    is_rotation: bool
    constraint: float
    """``alpha * outputs`` as in kohya's and LyCORIS' files; 0 is none."""
    rescale: Tensor | None
    """s, one number for each output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_blocks(self.blocks, 3, self.rescale)

    @property
    def outputs(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    def of(self, original: Tensor) -> Tensor:
        blocks = float32(self.blocks, original.device)
        if self.is_rotation:
            turn = blocks - torch.eye(blocks.shape[-1], device=blocks.device)
        else:
            turn = _rotation_less_identity(blocks, self.constraint)
        rows = original.reshape(*blocks.shape[:2], -1)
        delta = (turn.mT @ rows).view(original.shape)
        return _rescaled(delta, original, self.rescale)


@dataclass(frozen=True, eq=False)
class BOFT(Factors):
    """``s R_m ... R_1 W - W``: rotations of ever farther outputs (arXiv:2311.06243).

    Stage i pairs outputs ``2^i size / 2`` apart and rotates within blocks of what is then adjacent.
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
        turns = _rotation_less_identity(float32(self.blocks, original.device), self.constraint)
        stages, count, size, _ = turns.shape
        delta = torch.zeros_like(original).flatten(1)
        weight = original.flatten(1)
        for stage in range(stages):
            apart = (size << stage) // 2
            rotated = (weight + delta).unflatten(0, (-1, 2, apart)).transpose(1, 2)
            change = turns[stage] @ rotated.reshape(count, size, -1)
            change = change.reshape(rotated.shape).transpose(1, 2)
            delta = delta + change.reshape(delta.shape)
        return _rescaled(delta.view(original.shape), original, self.rescale)


def _check_blocks(blocks: Tensor, axes: int, rescale: Tensor | None) -> None:
    if blocks.ndim != axes or blocks.shape[-1] != blocks.shape[-2]:
        raise ShapeMismatch(f"rotation blocks of shape {tuple(blocks.shape)}")
    outputs = blocks.shape[-3] * blocks.shape[-2]
    if rescale is not None and rescale.numel() != outputs:
        raise ShapeMismatch(f"rescale of shape {tuple(rescale.shape)} for {outputs} outputs")


def _rotation_less_identity(blocks: Tensor, constraint: float) -> Tensor:
    """``R - I = 2 (I - Q)^-1 Q``: nothing is lost to the identity where the rotation is small."""
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
