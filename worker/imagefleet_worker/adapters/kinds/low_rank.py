"""LoRA, LoCon, LoHa and LoKr: deltas of products of small matrices.

In each, scale is ``alpha / rank``, or 1 if the file has no alpha.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, TensorShape
from imagefleet_worker.adapters.kinds.product import Dense, Product


@dataclass(frozen=True, eq=False)
class LoRADelta(Factors):
    """``scale * up @ down`` (arXiv:2106.09685); for convolutions LoCon (arXiv:2309.14859)."""

    product: Product
    scale: float

    @property
    def shape(self) -> TensorShape:
        return self.product.shape

    def of(self, original: Tensor) -> Tensor:
        return self.product.value(original.device, self.scale).reshape(original.shape)


@dataclass(frozen=True, eq=False)
class RowwiseLoRADelta(LoRADelta):
    """A LoRA without a core, whose rows can be computed separately.

    A CPU adds blocks of rows within its cache, in half the time of whole matrices.
    """

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """Its two matrices and its scale; see `merge_kernels.RowwiseDelta`."""
        return self.product.left.flatten(1), self.product.right.flatten(1), self.scale


@dataclass(frozen=True, eq=False)
class LoHa(Factors):
    """``scale * first ⊙ second``, each a product (arXiv:2108.06098, arXiv:2309.14859)."""

    first: Product
    second: Product
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first.shape != self.second.shape:
            raise ShapeMismatch(f"halves of shapes {self.first.shape} and {self.second.shape}")

    @property
    def shape(self) -> TensorShape:
        return self.first.shape

    def of(self, original: Tensor) -> Tensor:
        delta = self.first.value(original.device, self.scale)
        return delta.mul_(self.second.value(original.device)).reshape(original.shape)


@dataclass(frozen=True, eq=False)
class LoKr(Factors):
    """``scale * first ⊗ second``, each dense or a product (arXiv:2212.10650, arXiv:2309.14859)."""

    first: Product | Dense
    """``(a, c)``."""
    second: Product | Dense
    """``(b, d, *kernel)``, or with the kernel flattened into d."""
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.first.shape) != 2 or len(self.second.shape) < 2:
            raise ShapeMismatch(f"halves of shapes {self.first.shape} and {self.second.shape}")

    @property
    def shape(self) -> TensorShape:
        (a, c), (b, d, *kernel) = self.first.shape, self.second.shape
        return (a * b, c * d, *kernel)

    def of(self, original: Tensor) -> Tensor:
        first = self.first.value(original.device, self.scale)
        # torch 2.15's kron raises a view error on non-contiguous results of einsum.
        second = self.second.value(original.device).contiguous()
        kernel_ones = (1,) * (second.ndim - 2)
        return torch.kron(first.view(*first.shape, *kernel_ones), second).reshape(original.shape)


LowRank = LoRADelta | LoHa | LoKr
