"""A matrix or a convolution kernel, dense or as a product of small factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, TensorShape, float32


@dataclass(frozen=True, eq=False)
class Product(Factors):
    """``left @ right``, or with a core in between: a Tucker (CP) decomposition of a kernel.

    With a core, ``value[o, i, ...] = sum over a, b of left[o, a] core[a, b, ...] right[b, i]``
    (arXiv:2309.14859).
    """

    left: Tensor
    """``(out, rank)``, optionally with trailing dimensions of size 1."""
    right: Tensor
    """``(rank, in, *kernel)``; with a core, all kernel sizes are 1."""
    core: Tensor | None = None
    """``(rank, rank, *kernel)``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [tuple(tensor.shape) for tensor in self.tensors()]
        inner = (
            self.left.shape[1:2] + self.right.shape[:1]
            if self.core is None
            else (*self.left.shape[1:2], *self.core.shape[:2], *self.right.shape[:1])
        )
        paired = len(inner) == (2 if self.core is None else 4) and inner[::2] == inner[1::2]
        if min(map(len, sizes)) < 2 or not paired or not _is_flat(self.left):
            raise ShapeMismatch(f"factors of shapes {' and '.join(map(str, sizes))}")
        if self.core is not None and not _is_flat(self.right):
            raise ShapeMismatch(f"factors of shapes {' and '.join(map(str, sizes))}")

    @property
    def shape(self) -> TensorShape:
        """``(out, in, *kernel)``."""
        kernel = self.right if self.core is None else self.core
        return (self.left.shape[0], self.right.shape[1], *kernel.shape[2:])

    @property
    def rank(self) -> int:
        """The rank that alpha is divided by."""
        return self.right.shape[0]

    def value(self, device: torch.device, scale: float = 1.0) -> Tensor:
        """The product times the scale: float32, of `shape`, on the device."""
        # The scale is applied to the left factor because it is the smallest.
        left = float32(self.left, device).flatten(1) * scale
        right = float32(self.right, device).flatten(1)
        if self.core is None:
            return (left @ right).view(self.shape)
        return torch.einsum("oa,ab...,bi->oi...", left, float32(self.core, device), right)


@dataclass(frozen=True, eq=False)
class Dense(Factors):
    """A matrix or kernel that the file stores directly."""

    tensor: Tensor

    @property
    def shape(self) -> TensorShape:
        return tuple(self.tensor.shape)

    def value(self, device: torch.device, scale: float = 1.0) -> Tensor:
        """The tensor times the scale: float32, of `shape`, on the device."""
        return float32(self.tensor, device) * scale


def _is_flat(tensor: Tensor) -> bool:
    return all(size == 1 for size in tensor.shape[2:])
