"""Collects the errors of all tensors of an adapter file into one exception."""

from collections.abc import Sequence
from typing import Literal

from imagefleet_shared.errors import CorruptFile, ImagefleetError, IncompatibleAdapter
from imagefleet_worker.adapters.detect_family import FAMILY_NAMES
from imagefleet_worker.weights.families import Family

Reason = Literal["unknown", "no layer", "twice", "shape", "not finite", "incomplete"]

# Follows the count of tensors: "3 of 264 tensors ...".
_PROBLEMS: dict[Reason, str] = {
    "unknown": "are of no kind that is known here",
    "no layer": "are for no layer of it",
    "twice": "are for a layer that has others",
    "shape": "have the wrong shape or type",
    "not finite": "have values that are not finite",
    "incomplete": "do not make a whole",
}
_DAMAGE: set[Reason] = {"not finite", "incomplete"}
_MAX_EXAMPLES = 3


class LoadErrors:
    """Errors by reason, with examples in the order they were added."""

    def __init__(self) -> None:
        self._counts: dict[Reason, int] = {}
        self._examples: dict[Reason, list[str]] = {}

    def add(self, reason: Reason, keys: Sequence[str], detail: str = "") -> None:
        """Add tensors with the same error; a detail is shown with the first of them."""
        self._counts[reason] = self._counts.get(reason, 0) + len(keys)
        examples = self._examples.setdefault(reason, [])
        examples += [f"{keys[0]}: {detail}"] if detail else keys

    def to_exception(
        self, file_name: str, tensors: int, checkpoint: Family, detected: str | None
    ) -> ImagefleetError | None:
        """The exception to raise, or None if there are no errors.

        Args:
            file_name: for the message.
            tensors: number of tensors in the file.
            checkpoint: family of the checkpoint.
            detected: family that the file seems to be for; None if unknown.
        """
        if not self._counts:
            return None
        summary = "; ".join(
            f"{self._counts[reason]} of {tensors} tensors {problem} ({self._listed(reason)})"
            for reason, problem in _PROBLEMS.items()
            if reason in self._counts
        )
        if self._counts.keys() <= _DAMAGE:
            return CorruptFile(f"{file_name} is damaged: {summary}")
        other = detected is not None and detected != checkpoint
        guess = (
            f" and looks made for {FAMILY_NAMES[detected]}"
            if detected is not None and other
            else ""
        )
        return IncompatibleAdapter(
            f"{file_name} does not fit the {FAMILY_NAMES[checkpoint]} checkpoint{guess}: {summary}"
        )

    def _listed(self, reason: Reason) -> str:
        examples = self._examples[reason]
        more = ", …" if len(examples) > _MAX_EXAMPLES else ""
        return ", ".join(examples[:_MAX_EXAMPLES]) + more
