"""What a file gives for one weight, counted off as it is used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import ShapeMismatch
from imagefleet_worker.adapters.tensor_roles import TensorRole


class Incomplete(ValueError):
    """Parts that make no whole: one is missing, or one belongs to nothing."""


@dataclass(frozen=True)
class StatedAlpha:
    """An alpha from the file's metadata, for LoRA files that have no tensor for it (PEFT's)."""

    alpha: float
    by_root: bool
    """Divided by the root of the rank, as rsLoRA has it (arXiv:2312.03732)."""

    def scale(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)


class TensorGroup:
    """The parts for one weight.

    Args:
        parts: the file's tensors.
        stated: stands in for a missing alpha.
    """

    def __init__(self, parts: Mapping[TensorRole, Tensor], stated: StatedAlpha | None) -> None:
        self._unused = dict(parts)
        self._stated = stated

    @property
    def unused(self) -> list[TensorRole]:
        return sorted(self._unused)

    def has(self, part: TensorRole) -> bool:
        return part in self._unused

    def take(self, part: TensorRole) -> Tensor:
        """The part; raises `Incomplete` where there is none."""
        if part not in self._unused:
            raise Incomplete(f"no {part}, only {', '.join(self.unused) or 'its other half'}")
        return self._unused.pop(part)

    def maybe(self, part: TensorRole) -> Tensor | None:
        return self._unused.pop(part, None)

    def number(self, part: TensorRole) -> float | None:
        """The part's only element; raises `Misfit` where it has several."""
        tensor = self.maybe(part)
        if tensor is None:
            return None
        if tensor.numel() != 1:
            raise ShapeMismatch(f"{part} of shape {list(tensor.shape)}")
        return float(tensor)

    def scale(self, rank: int) -> float:
        """``alpha / rank``, or 1 without an alpha. A1111 knows a `scale` that goes before both."""
        scale, alpha = self.number("scale"), self.number("alpha")
        if scale is not None:
            return scale
        if alpha is not None:
            return alpha / rank
        return 1.0 if self._stated is None else self._stated.scale(rank)
