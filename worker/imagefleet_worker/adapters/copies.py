"""Merged weights of sets that were on, so that a set that comes back costs no more than a copy."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from imagefleet_worker.adapters.delta import Target
from imagefleet_worker.adapters.wanted import State


class MergedCopies:
    """Keeps copies while they fit a number of bytes, the set used longest ago out first.

    Args:
        budget_bytes: for all that is kept; a set that alone is larger is not kept.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        # Least recently used first.
        self._kept: OrderedDict[State, Mapping[Target, Tensor]] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Memory that the copies take."""
        return sum(_size_bytes(copies) for copies in self._kept.values())

    def find(self, state: State) -> Mapping[Target, Tensor] | None:
        """The merged weights of a set, only to be read; None where they are not kept."""
        if state in self._kept:
            self._kept.move_to_end(state)
        return self._kept.get(state)

    def keep(self, state: State, merged: Mapping[Target, Tensor]) -> None:
        """Copy the weights that a set has changed."""
        size_bytes = _size_bytes(merged)
        if size_bytes > self._budget_bytes:
            return
        while self.size_bytes + size_bytes > self._budget_bytes:
            self._kept.popitem(last=False)
        self._kept[state] = {target: weight.clone() for target, weight in merged.items()}


def _size_bytes(weights: Mapping[Target, Tensor]) -> int:
    return sum(weight.nbytes for weight in weights.values())
