"""Deltas without matrix products: full, IA³, and a sparse rest beside another delta."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, TensorShape, float32
from imagefleet_worker.adapters.kinds.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class Full(Factors):
    """The delta itself: `diff` of weights, `diff_b` of biases, `w_norm` and `b_norm` of norms."""

    delta: Tensor

    @property
    def shape(self) -> TensorShape:
        return tuple(self.delta.shape)

    def of(self, original: Tensor) -> Tensor:
        # A copy even where nothing changes: the caller owns it.
        moved = self.delta.to(original.device, non_blocking=True)
        return moved.to(torch.float32, copy=True).reshape(original.shape)


@dataclass(frozen=True, eq=False)
class IA3(Factors):
    """``W * w``, each output or each input times its own factor (arXiv:2205.05638).

    The bias stays, as in A1111 and in LyCORIS' merge, although the paper scales what the whole
    layer puts out.
    """

    factor: Tensor
    """One number for each output, or each input."""
    on_input: bool

    def of(self, original: Tensor) -> Tensor:
        axis = 1 if self.on_input else 0
        factor = float32(self.factor, original.device)
        return original * factor.view([-1 if i == axis else 1 for i in range(original.ndim)])


@dataclass(frozen=True, eq=False)
class SparseRest(Factors):
    """``scale * (products + values)``, values at some places: what LyCORIS' extraction leaves over.

    The file calls it a bias; it is one of the weight, not of the layer.
    """

    delta: LowRank
    rows: Tensor
    columns: Tensor
    """Into the weight with all but its first axis flattened, int64."""
    values: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        outputs, *rest = self.delta.shape
        inputs = torch.Size(rest).numel()
        if not len(self.rows) == len(self.columns) == len(self.values):
            raise ShapeMismatch(f"{len(self.values)} values at {len(self.rows)} places")
        for places, limit in ((self.rows, outputs), (self.columns, inputs)):
            if len(places) and not 0 <= int(places.min()) <= int(places.max()) < limit:
                raise ShapeMismatch(f"sparse values outside of a weight of {outputs} by {inputs}")

    @property
    def shape(self) -> TensorShape:
        return self.delta.shape

    def of(self, original: Tensor) -> Tensor:
        device = original.device
        delta = self.delta.of(original)
        places = (self.rows.to(device), self.columns.to(device))
        values = float32(self.values, device) * self.delta.scale
        delta.flatten(1).index_put_(places, values, accumulate=True)
        return delta
