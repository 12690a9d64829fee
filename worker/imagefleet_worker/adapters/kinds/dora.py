"""DoRA: a weight's direction from a delta, its magnitude learnt apart."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, TensorShape, float32
from imagefleet_worker.adapters.kinds.low_rank import LowRank

# As in LyCORIS: a row of zeros stays one and does not become NaN.
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class DoRA(Factors):
    """``m * V / |V| - W`` with ``V = W + delta(W)`` (arXiv:2402.09353).

    The paper has a norm for each column of its ``W``, which is an output here. LyCORIS' files
    have one for each input until it gained ``wd_on_out``, and OneTrainer's by default; PEFT's and
    newer ones have one for each output. The magnitude's shape tells.
    """

    direction: LowRank
    magnitude: Tensor
    """``(out, 1, ...)`` or ``(1, in, 1, ...)``: sizes of the weight, as the direction may have the
    kernel flattened into its inputs."""

    @property
    def shape(self) -> TensorShape:
        return self.direction.shape

    def of(self, original: Tensor) -> Tensor:
        merged = self.direction.of(original).add_(original)
        kept = 1 if self.magnitude.shape[0] == 1 else 0
        summed = [axis for axis in range(merged.ndim) if axis != kept]
        norm = torch.linalg.vector_norm(merged, dim=summed, keepdim=True)
        magnitude = float32(self.magnitude, original.device).view(norm.shape)
        return merged.mul_(magnitude / (norm + _EPSILON)).sub_(original)
