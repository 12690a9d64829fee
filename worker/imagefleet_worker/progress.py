"""How far a batch is on the device, and where its time goes."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from PIL import Image

from imagefleet_shared.status import Stage

ProgressCallback = Callable[[Stage, int, int], None]
"""Takes a stage, the steps done and the steps it has; raises where the job must stop."""


class JobCallbacks(Protocol):
    """Who waits for a job's pictures, and may want to see them before they are done."""

    preview_wanted: bool
    """Whether one is wanted now."""

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        """Take sketches of the job's pictures; called on the engine's thread."""
        ...

    def check_canceled(self) -> None:
        """Raise where the job must stop, which it may have to while it waits for its turn."""
        ...


class NullCallbacks:
    """A viewer who never wants to see anything, and lets every job go on."""

    preview_wanted = False

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        """Is not called."""

    def check_canceled(self) -> None:
        """Go on."""


NULL_CALLBACKS = NullCallbacks()


class BatchCanceled(Exception):
    """No job of the batch is to go on."""


class BatchProgress:
    """Counts a batch's steps, tells its jobs, and times its stages.

    A job that must stop raises from its `Tell`; the others go on, and what it raised is kept.

    Args:
        tells: one per job.
        viewers: of some jobs, with the places of the job's pictures in the batch.
    """

    def __init__(
        self,
        reports: Sequence[ProgressCallback],
        job_callbacks: Sequence[tuple[JobCallbacks, slice]] = (),
    ) -> None:
        self.seconds: dict[str, float] = {}
        """Time spent in each stage so far."""
        self.job_errors: dict[int, Exception] = {}
        """Why jobs must not go on, by their place in the batch."""
        self._reports = reports
        self._job_callbacks = job_callbacks
        self._stage: Stage = "queued"
        self._step = self._steps = 0
        self._since = monotonic()

    def begin_stage(self, stage: Stage, steps: int = 0) -> None:
        """End the stage before and begin another of so many steps; raises as `step`."""
        self.end_stage()
        self._stage, self._step, self._steps = stage, 0, steps
        self._report()

    def step(self) -> None:
        """Count a step.

        Raises:
            AllEnded: no job of the batch is to go on.
        """
        self._step += 1
        self._report()

    def set_step(self, step: int, steps: int) -> None:
        """Set the step, in a stage that learns its number of steps on the way; raises as `step`."""
        self._step, self._steps = step, steps
        self._report()

    def maybe_preview(self, draw_preview: Callable[[slice], Sequence[Image.Image]]) -> None:
        """Show how the pictures come along, to those who want to see it; else next to free.

        Args:
            sketch: draws those of the batch's pictures that the slice names.
        """
        for callbacks, pictures in self._job_callbacks:
            if callbacks.preview_wanted:
                callbacks.show_preview(draw_preview(pictures))

    def end_stage(self) -> None:
        """End the present stage."""
        now = monotonic()
        if self._stage != "queued":
            self.seconds[self._stage] = self.seconds.get(self._stage, 0) + now - self._since
        self._since = now

    def _report(self) -> None:
        for place, report in enumerate(self._reports):
            if place not in self.job_errors:
                try:
                    report(self._stage, self._step, self._steps)
                except Exception as exc:
                    self.job_errors[place] = exc
        if len(self.job_errors) == len(self._reports):
            raise BatchCanceled
