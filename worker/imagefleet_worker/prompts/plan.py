"""Parsing a prompt: first AND, then the schedule of each part; brackets come later.

As in A1111 v1.10, negative prompts have schedules but no AND.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imagefleet_worker.prompts.compose import split_and
from imagefleet_worker.prompts.schedule import parse_schedule


@dataclass(frozen=True)
class PromptPart:
    """One of the prompts joined by AND, or a negative prompt."""

    weight: float
    schedule: tuple[tuple[int, str], ...]
    """(last step, text), in order; see `parse_schedule`."""

    def text_at(self, call: int) -> str:
        """The text at an evaluation of the UNet.

        A1111 counts evaluations from 0 and a schedule's steps from 1, but compares the two without
        converting: a text that lasts to step 3 is used for evaluations 0 to 3, and step 1 lasts for
        two evaluations.

        Args:
            call: number of evaluations before it in this pass.
        """
        last_steps = [step for step, _ in self.schedule]
        return self.schedule[min(bisect_left(last_steps, call), len(last_steps) - 1)][1]


def plan_prompt(
    prompt: str, steps: int, first_pass_steps: int | None = None
) -> tuple[PromptPart, ...]:
    """Parse a prompt into its parts.

    Args:
        prompt: without LoRA tags.
        steps: see `parse_schedule`.
        first_pass_steps: see `parse_schedule`.

    Raises:
        InvalidRequest: a part's weight is not finite.
    """
    return tuple(
        PromptPart(weight, tuple(parse_schedule(text, steps, first_pass_steps)))
        for text, weight in split_and(prompt)
    )


def plan_negative(prompt: str, steps: int, first_pass_steps: int | None = None) -> PromptPart:
    """Parse a negative prompt into its only part; AND and a final number are ordinary text."""
    return PromptPart(1.0, tuple(parse_schedule(prompt, steps, first_pass_steps)))


def texts_of(parts: Iterable[PromptPart]) -> tuple[str, ...]:
    """The distinct texts of all schedules, in order of first appearance."""
    return tuple(dict.fromkeys(text for part in parts for _, text in part.schedule))


def needs_negative(parts: Sequence[PromptPart], guidance_scale: float) -> bool:
    """Whether the negative prompt has any effect.

    Args:
        parts: of the prompt.
        guidance_scale: at 1 the negative prompt cancels out if there is one part of weight 1.
    """
    return guidance_scale != 1 or [part.weight for part in parts] != [1.0]
