"""The one thread that touches the device: takes jobs in batches, renders them, reports steps."""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Condition, Thread
from time import monotonic
from typing import Protocol

from PIL import Image

from imagefleet_shared.field_types import Priority
from imagefleet_shared.status import Stage
from imagefleet_worker import metrics
from imagefleet_worker.device.errors import NoRoomForWeights
from imagefleet_worker.engine.batch_key import traits_of
from imagefleet_worker.engine.batch_limit import UNMEASURED_MEMORY, DeviceMemory, Room
from imagefleet_worker.engine.requests import Order, Rendered, seated
from imagefleet_worker.engine.scheduler import Line, Place
from imagefleet_worker.progress import NOBODY, AllEnded, Stages, Tell, Viewer
from imagefleet_worker.requests.resolved import ResolvedJob

logger = logging.getLogger(__name__)

HEED_S = 0.25
"""A job that waits for its turn is asked this often whether it is to go on."""


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


def end_process() -> None:
    """End this process at once, whatever its other threads do."""
    os._exit(1)


class Engine(Thread):
    """Runs a renderer on the jobs that wait, those that fit together at once, in `Line`'s order.

    Args:
        make_renderer: makes what draws; called on the engine's thread, as everything that computes:
            a second thread that ever does makes OpenMP count twice the threads, and then its
            threads sleep between operators, which took 2.4 times as long on two cores.
        beat: called with True at every step and with False when there is nothing to do, so that a
            parent process can tell a stall from idleness.
        max_batch_pixels: of all pictures of a batch; 0 renders every job alone.
        gather_s: how long a batch that is not full waits for jobs that are on their way.
        memory: of the device.
        abort: called where the device, or this thread, can do nothing more; ends the process, so
            that its jobs are leased by others.
    """

    def __init__(
        self,
        make_renderer: Callable[[], Renderer],
        beat: Callable[[bool], None],
        max_batch_pixels: int,
        gather_s: float = 0,
        memory: DeviceMemory = UNMEASURED_MEMORY,
        abort: Callable[[], object] = end_process,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.ready: Future[None] = Future()
        """Done once the renderer is made, or with what kept it from being made."""
        self._make_renderer = make_renderer
        self._beat = beat
        self._memory = memory
        self._room = Room(max_batch_pixels, memory)
        self._gather_s = gather_s
        self._abort = abort
        self._coming: set[object] = set()
        self._line: Line[Order] = Line()
        self._changed = Condition()
        self._closed = False

    @contextmanager
    def expected(self) -> Generator[object]:
        """Announce a job: batches that have room wait a little for it.

        Yields:
            What `render` takes to know it again. Where the context ends without, it comes no more.
        """
        ticket = object()
        with self._changed:
            self._coming.add(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                self._coming.discard(ticket)
                self._changed.notify()

    def render(
        self,
        job: ResolvedJob,
        tell: Tell,
        viewer: Viewer = NOBODY,
        priority: Priority = "normal",
        alone: bool = False,
        ticket: object = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Rendered:
        """Have a job rendered; blocks the calling thread until it is done.

        Args:
            job: to be rendered.
            tell: hears of every step.
            viewer: is shown sketches of the pictures, when it wants them, and is asked while the
                job waits whether it is to go on.
            priority: among the jobs that wait here.
            alone: never in a batch with other jobs.
            ticket: of `expected`, if the job was.
            meanwhile: done on the calling thread while the job waits; it must compute nothing.

        Raises:
            ImagefleetError: what the job asks for cannot be done.
            JobCanceled, JobTimeout, LeaseLost, HandBack: whatever `tell` or `viewer` raised.
        """
        order = Order(job, traits_of(job, priority, alone=alone), tell, viewer)
        with self._changed:
            self._coming.discard(ticket)
            self._line.join(order, order.traits)
            self._changed.notify()
        if meanwhile is not None:
            meanwhile()
        self._heed(order)
        return order.done.result()

    def _heed(self, order: Order) -> None:
        """Wait for a job's turn; it leaves the line where it must stop before."""
        while not wait([order.done], HEED_S).done:
            with self._changed:
                if order not in self._line:
                    return
                try:
                    order.viewer.check()
                except BaseException:
                    self._line.leave(order)
                    self._changed.notify()
                    raise

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
        try:
            self._serve(renderer)
        except BaseException:  # Else the jobs that wait would wait for ever, their leases renewed.
            logger.critical("the engine is broken; this process ends", exc_info=True)
            self._abort()

    def _serve(self, renderer: Renderer) -> None:
        self._beat(False)
        while orders := self._next():
            self._run(renderer, orders)
            # Finished jobs hold pictures, failed ones their frames' tensors.
            del orders
            self._beat(False)

    def _next(self) -> list[Order]:
        """The orders to run next; none once closed."""
        batch: list[Place[Order]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: len(self._line) or self._closed)
                if not len(self._line):
                    return []
                self._changed.wait_for(self._gathered, self._gather_s)
                # Meanwhile jobs may have left the line, the last one too.
                if len(self._line):
                    batch = self._line.take(self._room.pixels)
        for place in batch:
            metrics.PASSED_OVER.observe(place.passed)
        return [place.item for place in batch]

    def _gathered(self) -> bool:
        """Whether a batch gains nothing by waiting for more jobs."""
        return not self._coming or not len(self._line) or self._line.full(self._room.pixels)

    def _run(self, renderer: Renderer, orders: Sequence[Order]) -> None:
        started_s = monotonic()
        stages = Stages([self._beating(order.tell) for order in orders], seated(orders))
        family, pixels = orders[0].traits.family, sum(order.traits.pixels for order in orders)
        try:
            with self._room.watched(family, pixels):
                pictures = renderer.render([order.job for order in orders], stages)
            stages.end()
            metrics.BATCH_JOBS.observe(len(orders))
            for stage, seconds in stages.seconds.items():
                metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        except AllEnded:
            self._line.forget()
            pictures = [[] for _ in orders]
        except BaseException as exc:
            if self._memory.is_lost(exc):
                # No job is to fail of it.
                raise
            self._line.forget()
            error = self._memory.as_worker_error(exc)
            if len(orders) == 1 or isinstance(exc, NoRoomForWeights):
                for order in orders:
                    order.done.set_exception(error)
                return
            # One of them cannot be done, or all are too many at once: halves find out which.
            logger.warning("a batch of %d failed, its halves again apart: %s", len(orders), error)
            metrics.BATCHES_SPLIT.labels(type(error).__name__).inc()
            middle = len(orders) // 2
            self._run(renderer, orders[:middle])
            self._run(renderer, orders[middle:])
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
