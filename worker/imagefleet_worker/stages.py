"""How far a job is on the device, and where its time goes."""

from collections.abc import Callable
from time import monotonic

from imagefleet_shared.status import Stage

Tell = Callable[[Stage, int, int], None]
"""Takes a stage, the steps done and the steps it has; raises where the job must stop."""


class Stages:
    """Counts a job's steps and times its stages."""

    def __init__(self, tell: Tell) -> None:
        self.seconds: dict[str, float] = {}
        """Time spent in each stage so far."""
        self._tell = tell
        self._stage: Stage = "queued"
        self._step = self._steps = 0
        self._since = monotonic()

    def begin(self, stage: Stage, steps: int = 0) -> None:
        """End the stage before and begin another of so many steps; raises as `step`."""
        self.end()
        self._stage, self._step, self._steps = stage, 0, steps
        self._tell(stage, 0, steps)

    def step(self) -> None:
        """Count a step.

        Raises:
            JobCanceled, JobTimeout, LeaseLost, HandBack: the job must not go on.
        """
        self._step += 1
        self._tell(self._stage, self._step, self._steps)

    def reach(self, step: int, steps: int) -> None:
        """Set the step, in a stage that learns its number of steps on the way; raises as `step`."""
        self._step, self._steps = step, steps
        self._tell(self._stage, step, steps)

    def end(self) -> None:
        """End the present stage."""
        now = monotonic()
        if self._stage != "queued":
            self.seconds[self._stage] = self.seconds.get(self._stage, 0) + now - self._since
        self._since = now
