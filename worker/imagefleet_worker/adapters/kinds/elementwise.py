"""Deltas without matrix products: full, IA³, and a sparse residual added to another delta."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, TensorShape, float32
from imagefleet_worker.adapters.kinds.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class Full(Factors):
    """A delta stored as is: `diff` of weights, `diff_b` of biases, `w_norm`, `b_norm` of norms."""

    delta: Tensor

    @property
    def shape(self) -> TensorShape:
        return tuple(self.delta.shape)

    def of(self, original: Tensor) -> Tensor:
        # Always a copy, because the caller owns the result.
        moved = self.delta.to(original.device, non_blocking=True)
        return moved.to(torch.float32, copy=True).reshape(original.shape)


@dataclass(frozen=True, eq=False)
class IA3(Factors):
    """``W * w``, one factor per output or per input (arXiv:2205.05638).

    The bias is not scaled, as in A1111 and LyCORIS' merge, although the paper scales the whole
    output of the layer.
    """

    factor: Tensor
    """One number per output, or per input."""
    on_input: bool

    def of(self, original: Tensor) -> Tensor:
        axis = 1 if self.on_input else 0
        factor = float32(self.factor, original.device)
        return original * factor.view([-1 if i == axis else 1 for i in range(original.ndim)])


@dataclass(frozen=True, eq=False)
class SparseResidual(Factors):
    """``scale * (products + sparse values)``, as extracted by LyCORIS.

    The file calls the values a bias, but they are added to the weight.
    """

    delta: LowRank
    rows: Tensor
    columns: Tensor
    """Indices into the weight with all but its first axis flattened, int64."""
    values: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        outputs, *rest = self.delta.shape
        inputs = torch.Size(rest).numel()
        if not len(self.rows) == len(self.columns) == len(self.values):
            raise ShapeMismatch(f"{len(self.values)} values at {len(self.rows)} places")
        for indices, limit in ((self.rows, outputs), (self.columns, inputs)):
            if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < limit:
                raise ShapeMismatch(f"sparse values outside of a weight of {outputs} by {inputs}")

    @property
    def shape(self) -> TensorShape:
        return self.delta.shape

    def of(self, original: Tensor) -> Tensor:
        device = original.device
        delta = self.delta.of(original)
        indices = (self.rows.to(device), self.columns.to(device))
        values = float32(self.values, device) * self.delta.scale
        delta.flatten(1).index_put_(indices, values, accumulate=True)
        return delta
