"""Progress of a batch on the device, and the time spent in each stage."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from PIL import Image

from imagefleet_shared.status import Stage

ProgressCallback = Callable[[Stage, int, int], None]
"""Called with a stage, the steps done and the stage's steps; raises if the job must stop."""


class JobCallbacks(Protocol):
    """What the engine calls for a job besides its progress callback: previews and cancellation."""

    preview_wanted: bool
    """Whether a preview is wanted now."""

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        """Receive previews of the job's images; called on the engine's thread."""
        ...

    def check_canceled(self) -> None:
        """Raise if the job must stop; called while it waits for its turn."""
        ...


class NullCallbacks:
    """Callbacks of a job that needs no previews and is never canceled."""

    preview_wanted = False

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        """Never called."""

    def check_canceled(self) -> None:
        """Never raises."""


NULL_CALLBACKS = NullCallbacks()


class BatchCanceled(Exception):
    """Every job of the batch must stop."""


class BatchProgress:
    """Counts a batch's steps, reports them to its jobs, and times its stages.

    A job that must stop raises from its `ProgressCallback`; the error is recorded in `job_errors`,
    and the other jobs continue.

    Args:
        reports: progress callbacks, one per job.
        job_callbacks: of some jobs, each with the slice of its images in the batch.
    """

    def __init__(
        self,
        reports: Sequence[ProgressCallback],
        job_callbacks: Sequence[tuple[JobCallbacks, slice]] = (),
    ) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds spent in each stage so far."""
        self.job_errors: dict[int, Exception] = {}
        """Why jobs must stop, by their index in the batch."""
        self._reports = reports
        self._job_callbacks = job_callbacks
        self._stage: Stage = "queued"
        self._step = self._steps = 0
        self._since = monotonic()

    def begin_stage(self, stage: Stage, steps: int = 0) -> None:
        """End the current stage and begin one of so many steps; raises as `step`."""
        self.end_stage()
        self._stage, self._step, self._steps = stage, 0, steps
        self._report()

    def step(self) -> None:
        """Count a step.

        Raises:
            BatchCanceled: every job of the batch must stop.
        """
        self._step += 1
        self._report()

    def set_step(self, step: int, steps: int) -> None:
        """Set step and total, in a stage whose total is not known in advance; raises as `step`."""
        self._step, self._steps = step, steps
        self._report()

    def maybe_preview(self, draw_preview: Callable[[slice], Sequence[Image.Image]]) -> None:
        """Pass previews to the jobs that want one; costs next to nothing if none does.

        Args:
            draw_preview: decodes previews of a slice of the batch's images.
        """
        for callbacks, images in self._job_callbacks:
            if callbacks.preview_wanted:
                callbacks.show_preview(draw_preview(images))

    def end_stage(self) -> None:
        """End the current stage."""
        now = monotonic()
        if self._stage != "queued":
            self.seconds[self._stage] = self.seconds.get(self._stage, 0) + now - self._since
        self._since = now

    def _report(self) -> None:
        for index, report in enumerate(self._reports):
            if index not in self.job_errors:
                try:
                    report(self._stage, self._step, self._steps)
                except Exception as exc:
                    self.job_errors[index] = exc
        if len(self.job_errors) == len(self._reports):
            raise BatchCanceled
