"""DoRA: a delta changes the weight's direction, its magnitude is learned separately."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, TensorShape, float32
from imagefleet_worker.adapters.kinds.low_rank import LowRank

# As in LyCORIS: a row of zeros stays zero and does not become NaN.
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class DoRA(Factors):
    """``m * V / |V| - W`` with ``V = W + delta(W)`` (arXiv:2402.09353).

    The paper has one norm per column of its ``W``, which is an output here. LyCORIS before
    ``wd_on_out``, and OneTrainer by default, have one per input; PEFT and newer LyCORIS have one
    per output. The magnitude's shape distinguishes them.
    """

    direction: LowRank
    magnitude: Tensor
    """``(out, 1, ...)`` or ``(1, in, 1, ...)``, by the weight's shape; the direction may have the
    kernel flattened into its inputs."""

    @property
    def shape(self) -> TensorShape:
        return self.direction.shape

    def of(self, original: Tensor) -> Tensor:
        merged = self.direction.of(original).add_(original)
        kept_axis = 1 if self.magnitude.shape[0] == 1 else 0
        summed_axes = [axis for axis in range(merged.ndim) if axis != kept_axis]
        norm = torch.linalg.vector_norm(merged, dim=summed_axes, keepdim=True)
        magnitude = float32(self.magnitude, original.device).view(norm.shape)
        return merged.mul_(magnitude / (norm + _EPSILON)).sub_(original)
