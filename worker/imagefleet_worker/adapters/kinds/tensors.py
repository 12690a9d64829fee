"""The tensors of a file for one weight, tracked as they are used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import ShapeMismatch
from imagefleet_worker.adapters.tensor_roles import TensorRole


class Incomplete(ValueError):
    """A tensor of a layer is missing, or one is not used."""


@dataclass(frozen=True)
class MetadataAlpha:
    """An alpha from the file's metadata, for LoRA files that have no tensor for it (PEFT's)."""

    alpha: float
    rank_stabilized: bool
    """Divided by the square root of the rank, as in rsLoRA (arXiv:2312.03732)."""

    def scale(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


class TensorGroup:
    """The tensors for one weight by role; builders take what they need.

    Args:
        tensors: from the file.
        alpha: used if there is no alpha tensor.
    """

    def __init__(self, tensors: Mapping[TensorRole, Tensor], alpha: MetadataAlpha | None) -> None:
        self._unused = dict(tensors)
        self._metadata_alpha = alpha

    @property
    def unused(self) -> list[TensorRole]:
        return sorted(self._unused)

    def has(self, role: TensorRole) -> bool:
        return role in self._unused

    def take(self, role: TensorRole) -> Tensor:
        """Take a tensor; raises `Incomplete` if there is none."""
        if role not in self._unused:
            raise Incomplete(f"no {role}, only {', '.join(self.unused) or 'its other half'}")
        return self._unused.pop(role)

    def take_optional(self, role: TensorRole) -> Tensor | None:
        return self._unused.pop(role, None)

    def take_number(self, role: TensorRole) -> float | None:
        """Take the only element of a tensor; raises `ShapeMismatch` if it has several."""
        tensor = self.take_optional(role)
        if tensor is None:
            return None
        if tensor.numel() != 1:
            raise ShapeMismatch(f"{role} of shape {list(tensor.shape)}")
        return float(tensor)

    def scale(self, rank: int) -> float:
        """``alpha / rank``, or 1 without an alpha; as in A1111 a `scale` tensor overrides both."""
        scale, alpha = self.take_number("scale"), self.take_number("alpha")
        if scale is not None:
            return scale
        if alpha is not None:
            return alpha / rank
        return 1.0 if self._metadata_alpha is None else self._metadata_alpha.scale(rank)
