"""A prompt's order of operations: AND, then the schedule of each part, then its brackets.

As in A1111 v1.10, whose negative prompts have schedules but no AND.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imagefleet_worker.prompts.compose import split_and
from imagefleet_worker.prompts.schedule import parse_schedule


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins, or a negative prompt."""

    weight: float
    schedule: tuple[tuple[int, str], ...]
    """(last step, text), in order; see `parse_schedule`."""

    def text_at(self, call: int) -> str:
        """The text of an evaluation of the UNet.

        A1111 counts evaluations from 0 and a schedule's steps from 1, and compares them as they
        are: what lasts to step 3 is for evaluations 0 to 3, and a first step for two of them.

        Args:
            call: how many evaluations there were before it, in this pass.
        """
        last_steps = [step for step, _ in self.schedule]
        return self.schedule[min(bisect_left(last_steps, call), len(last_steps) - 1)][1]


def plan_prompt(prompt: str, steps: int, first_pass_steps: int | None = None) -> tuple[Part, ...]:
    """A prompt's parts.

    Args:
        prompt: without tags for LoRAs.
        steps: see `parse_schedule`.
        first_pass_steps: see `parse_schedule`.

    Raises:
        InvalidRequest: a part's weight is not finite.
    """
    return tuple(
        Part(weight, tuple(parse_schedule(text, steps, first_pass_steps)))
        for text, weight in split_and(prompt)
    )


def plan_negative(prompt: str, steps: int, first_pass_steps: int | None = None) -> Part:
    """A negative prompt's only part; AND and a number at its end are words like any other."""
    return Part(1.0, tuple(parse_schedule(prompt, steps, first_pass_steps)))


def texts_of(parts: Iterable[Part]) -> tuple[str, ...]:
    """Every text of all the schedules once, in order of first appearance."""
    return tuple(dict.fromkeys(text for part in parts for _, text in part.schedule))


def needs_negative(parts: Sequence[Part], guidance_scale: float) -> bool:
    """Whether a picture moves other than by its prompt alone.

    Args:
        parts: of its prompt.
        guidance_scale: 1: the negative prompt cancels out, where there is one part of weight 1.
    """
    return guidance_scale != 1 or [part.weight for part in parts] != [1.0]
