"""The one thread that touches the device: takes jobs in batches, renders them, reports steps."""

import gc
import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic
from typing import Protocol

import torch
from PIL import Image

from imagefleet_shared.errors import OutOfMemory
from imagefleet_shared.status import Stage

from . import metrics
from .batching import together
from .ready import ResolvedJob, ResolvedUpscale
from .stages import NOBODY, AllEnded, Stages, Tell, Viewer

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """Turns jobs into pictures on the device."""

    def render(self, jobs: Sequence[ResolvedJob], stages: Stages) -> list[list[Image.Image]]:
        """Draw or enlarge a batch, as `batching` put it together; called on the engine's thread.

        Returns:
            The pictures of each job, in its order.

        Raises:
            ImagefleetError: what a job asks for cannot be done.
            AllEnded: no job is to go on.
        """
        ...


@dataclass(frozen=True)
class Rendered:
    """What the engine made of a job."""

    images: list[Image.Image]
    waited_s: float
    """In the engine's queue."""
    stages_s: dict[str, float]
    """Of the whole batch."""
    batch_jobs: int
    """Jobs in the batch, this one included."""


@dataclass(eq=False)
class _Order:
    job: ResolvedJob
    tell: Tell
    viewer: Viewer
    ordered_s: float = field(default_factory=monotonic)
    done: "Future[Rendered]" = field(default_factory=Future)


class Engine(Thread):
    """Runs a renderer on the jobs that wait, oldest first, those that fit together at once.

    Args:
        make_renderer: makes what draws; called on the engine's thread, as everything that computes:
            a second thread that ever does makes OpenMP count twice the threads, and then its
            threads sleep between operators, which took 2.4 times as long on two cores.
        beat: called with True at every step and with False when there is nothing to do, so that a
            parent process can tell a stall from idleness.
        max_batch_pixels: of all pictures of a batch; 0 renders every job alone.
    """

    def __init__(
        self,
        make_renderer: Callable[[], Renderer],
        beat: Callable[[bool], None],
        max_batch_pixels: int,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.ready: Future[None] = Future()
        """Done once the renderer is made, or with what kept it from being made."""
        self._make_renderer = make_renderer
        self._beat = beat
        self._max_batch_pixels = max_batch_pixels
        self._waiting: deque[_Order] = deque()
        self._changed = Condition()
        self._closed = False

    def render(self, job: ResolvedJob, tell: Tell, viewer: Viewer = NOBODY) -> Rendered:
        """Have a job rendered; blocks the calling thread until it is done.

        Args:
            job: to be rendered.
            tell: hears of every step.
            viewer: is shown sketches of the pictures, when it wants them.

        Raises:
            ImagefleetError: what the job asks for cannot be done.
            JobCanceled, JobTimeout, LeaseLost, HandBack: whatever `tell` raised.
        """
        order = _Order(job, tell, viewer)
        with self._changed:
            self._waiting.append(order)
            self._changed.notify()
        return order.done.result()

    def close(self) -> None:
        """Finish the jobs taken, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        try:
            renderer = self._make_renderer()
        except BaseException as exc:
            self.ready.set_exception(exc)
            return
        self.ready.set_result(None)
        self._beat(False)
        while orders := self._next():
            self._run(renderer, orders)
            # Finished jobs hold pictures, failed ones their frames' tensors.
            del orders
            self._beat(False)

    def _next(self) -> list[_Order]:
        """The orders to run next; none once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            jobs = [order.job for order in self._waiting]
            places = together(jobs, self._max_batch_pixels)
            orders = [self._waiting[place] for place in places]
            for order in orders:
                self._waiting.remove(order)
            return orders

    def _run(self, renderer: Renderer, orders: Sequence[_Order]) -> None:
        started_s = monotonic()
        stages = Stages([self._beating(order.tell) for order in orders], _seated(orders))
        try:
            pictures = renderer.render([order.job for order in orders], stages)
            stages.end()
            metrics.BATCH_JOBS.observe(len(orders))
            for stage, seconds in stages.seconds.items():
                metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        except AllEnded:
            pictures = [[] for _ in orders]
        except BaseException as exc:  # Else the thread would end and its callers wait for ever.
            error = _translated(exc)
            if len(orders) == 1:
                orders[0].done.set_exception(error)
                return
            # One of them cannot be done, or all are too many at once: each must show by itself.
            log.warning("a batch of %d failed, each job again alone: %s", len(orders), error)
            for order in orders:
                self._run(renderer, [order])
            return
        for place, (order, images) in enumerate(zip(orders, pictures, strict=True)):
            if place in stages.ended:
                order.done.set_exception(stages.ended[place])
                continue
            waited_s = started_s - order.ordered_s
            order.done.set_result(Rendered(images, waited_s, stages.seconds, len(orders)))

    def _beating(self, tell: Tell) -> Tell:
        def beat_and_tell(stage: Stage, step: int, steps: int) -> None:
            self._beat(True)
            tell(stage, step, steps)

        return beat_and_tell


def _seated(orders: Sequence[_Order]) -> list[tuple[Viewer, slice]]:
    """The viewers, each with the places of its job's pictures in the batch."""
    seated: list[tuple[Viewer, slice]] = []
    first = 0
    for order in orders:
        count = 1 if isinstance(order.job, ResolvedUpscale) else len(order.job.seeds.seeds)
        seated.append((order.viewer, slice(first, first + count)))
        first += count
    return seated


def _translated(exc: BaseException) -> BaseException:
    if not isinstance(exc, torch.OutOfMemoryError):
        return exc
    # The frames that failed hold the tensors that took the memory.
    traceback.clear_frames(exc.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()
    return OutOfMemory(
        "the device ran out of memory; ask for a smaller size or fewer images, or run the worker "
        "with IMAGEFLEET_PRESET=balanced or low_vram"
    )
