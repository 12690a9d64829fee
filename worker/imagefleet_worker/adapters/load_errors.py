"""What is wrong with an adapter file, gathered over all of its tensors and said at once."""

from collections.abc import Sequence
from typing import Literal

from imagefleet_shared.errors import CorruptFile, ImagefleetError, IncompatibleAdapter
from imagefleet_worker.adapters.detect_family import FAMILY_NAMES
from imagefleet_worker.weights.families import Family

Reason = Literal["unknown", "no layer", "twice", "shape", "not finite", "incomplete"]

# The tensors of one layer count together: "3 of 264 tensors ...".
_SAYINGS: dict[Reason, str] = {
    "unknown": "are of no kind that is known here",
    "no layer": "are for no layer of it",
    "twice": "are for a layer that has others",
    "shape": "have the wrong shape or type",
    "not finite": "have values that are not finite",
    "incomplete": "do not make a whole",
}
_DAMAGE: set[Reason] = {"not finite", "incomplete"}
_EXAMPLES = 3


class LoadErrors:
    """Faults by reason; the order of finding is kept."""

    def __init__(self) -> None:
        self._counts: dict[Reason, int] = {}
        self._examples: dict[Reason, list[str]] = {}

    def add(self, reason: Reason, keys: Sequence[str], detail: str = "") -> None:
        """Note tensors with the same fault; a detail is told with the first of them."""
        self._counts[reason] = self._counts.get(reason, 0) + len(keys)
        examples = self._examples.setdefault(reason, [])
        examples += [f"{keys[0]}: {detail}"] if detail else keys

    def error(
        self, file_name: str, tensors: int, checkpoint: Family, detected: str | None
    ) -> ImagefleetError | None:
        """The error to raise, or None if nothing was noted.

        Args:
            tensors: how many the file has.
            look: the family that the file looks made for, if it can be told.
        """
        if not self._counts:
            return None
        told = "; ".join(
            f"{self._counts[reason]} of {tensors} tensors {saying} ({self._shown(reason)})"
            for reason, saying in _SAYINGS.items()
            if reason in self._counts
        )
        if self._counts.keys() <= _DAMAGE:
            return CorruptFile(f"{file_name} is damaged: {told}")
        other = detected is not None and detected != checkpoint
        guess = (
            f" and looks made for {FAMILY_NAMES[detected]}"
            if detected is not None and other
            else ""
        )
        return IncompatibleAdapter(
            f"{file_name} does not fit the {FAMILY_NAMES[checkpoint]} checkpoint{guess}: {told}"
        )

    def _shown(self, reason: Reason) -> str:
        examples = self._examples[reason]
        more = ", …" if len(examples) > _EXAMPLES else ""
        return ", ".join(examples[:_EXAMPLES]) + more
