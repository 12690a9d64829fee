"""How far a batch is on the device, and where its time goes."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from PIL import Image

from imagefleet_shared.status import Stage

Tell = Callable[[Stage, int, int], None]
"""Takes a stage, the steps done and the steps it has; raises where the job must stop."""


class Viewer(Protocol):
    """Who waits for a job's pictures, and may want to see them before they are done."""

    watched: bool
    """Whether one is wanted now."""

    def show(self, sketches: Sequence[Image.Image]) -> None:
        """Take sketches of the job's pictures; called on the engine's thread."""
        ...

    def check(self) -> None:
        """Raise where the job must stop, which it may have to while it waits for its turn."""
        ...


class Nobody:
    """A viewer who never wants to see anything, and lets every job go on."""

    watched = False

    def show(self, sketches: Sequence[Image.Image]) -> None:
        """Is not called."""

    def check(self) -> None:
        """Go on."""


NOBODY = Nobody()


class AllEnded(Exception):
    """No job of the batch is to go on."""


class Stages:
    """Counts a batch's steps, tells its jobs, and times its stages.

    A job that must stop raises from its `Tell`; the others go on, and what it raised is kept.

    Args:
        tells: one per job.
        viewers: of some jobs, with the places of the job's pictures in the batch.
    """

    def __init__(self, tells: Sequence[Tell], viewers: Sequence[tuple[Viewer, slice]] = ()) -> None:
        self.seconds: dict[str, float] = {}
        """Time spent in each stage so far."""
        self.ended: dict[int, Exception] = {}
        """Why jobs must not go on, by their place in the batch."""
        self._tells = tells
        self._viewers = viewers
        self._stage: Stage = "queued"
        self._step = self._steps = 0
        self._since = monotonic()

    def begin(self, stage: Stage, steps: int = 0) -> None:
        """End the stage before and begin another of so many steps; raises as `step`."""
        self.end()
        self._stage, self._step, self._steps = stage, 0, steps
        self._tell()

    def step(self) -> None:
        """Count a step.

        Raises:
            AllEnded: no job of the batch is to go on.
        """
        self._step += 1
        self._tell()

    def reach(self, step: int, steps: int) -> None:
        """Set the step, in a stage that learns its number of steps on the way; raises as `step`."""
        self._step, self._steps = step, steps
        self._tell()

    def offer(self, sketch: Callable[[slice], Sequence[Image.Image]]) -> None:
        """Show how the pictures come along, to those who want to see it; else next to free.

        Args:
            sketch: draws those of the batch's pictures that the slice names.
        """
        for viewer, pictures in self._viewers:
            if viewer.watched:
                viewer.show(sketch(pictures))

    def end(self) -> None:
        """End the present stage."""
        now = monotonic()
        if self._stage != "queued":
            self.seconds[self._stage] = self.seconds.get(self._stage, 0) + now - self._since
        self._since = now

    def _tell(self) -> None:
        for place, tell in enumerate(self._tells):
            if place not in self.ended:
                try:
                    tell(self._stage, self._step, self._steps)
                except Exception as exc:
                    self.ended[place] = exc
        if len(self.ended) == len(self._tells):
            raise AllEnded
