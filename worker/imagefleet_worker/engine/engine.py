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
from imagefleet_worker.engine.batch_key import scheduling_key
from imagefleet_worker.engine.batch_limit import UNMEASURED_MEMORY, BatchSizeLimiter, DeviceMemory
from imagefleet_worker.engine.requests import EngineRequest, RenderOutput, image_slices
from imagefleet_worker.engine.scheduler import BatchScheduler, QueueEntry
from imagefleet_worker.progress import (
    NULL_CALLBACKS,
    BatchCanceled,
    BatchProgress,
    JobCallbacks,
    ProgressCallback,
)
from imagefleet_worker.requests.resolved import ResolvedJob

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.25
"""A job that waits for its turn is asked this often whether it is to go on."""


class Renderer(Protocol):
    """Turns jobs into pictures on the device."""

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
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
        heartbeat: Callable[[bool], None],
        max_batch_pixels: int,
        gather_s: float = 0,
        memory: DeviceMemory = UNMEASURED_MEMORY,
        abort: Callable[[], object] = end_process,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.ready: Future[None] = Future()
        """Done once the renderer is made, or with what kept it from being made."""
        self._make_renderer = make_renderer
        self._heartbeat = heartbeat
        self._memory = memory
        self._limiter = BatchSizeLimiter(max_batch_pixels, memory)
        self._gather_s = gather_s
        self._abort = abort
        self._announced: set[object] = set()
        self._scheduler: BatchScheduler[EngineRequest] = BatchScheduler()
        self._changed = Condition()
        self._closed = False

    @contextmanager
    def announce(self) -> Generator[object]:
        """Announce a job: batches that have room wait a little for it.

        Yields:
            What `render` takes to know it again. Where the context ends without, it comes no more.
        """
        reservation = object()
        with self._changed:
            self._announced.add(reservation)
        try:
            yield reservation
        finally:
            with self._changed:
                self._announced.discard(reservation)
                self._changed.notify()

    def render(
        self,
        job: ResolvedJob,
        report: ProgressCallback,
        callbacks: JobCallbacks = NULL_CALLBACKS,
        priority: Priority = "normal",
        alone: bool = False,
        reservation: object = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> RenderOutput:
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
        request = EngineRequest(job, scheduling_key(job, priority, alone=alone), report, callbacks)
        with self._changed:
            self._announced.discard(reservation)
            self._scheduler.enqueue(request, request.scheduling_key)
            self._changed.notify()
        if while_waiting is not None:
            while_waiting()
        self._wait_for_turn(request)
        return request.done.result()

    def _wait_for_turn(self, request: EngineRequest) -> None:
        """Wait for a job's turn; it leaves the line where it must stop before."""
        while not wait([request.done], CHECK_INTERVAL_S).done:
            with self._changed:
                if request not in self._scheduler:
                    return
                try:
                    request.callbacks.check_canceled()
                except BaseException:
                    self._scheduler.remove(request)
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
        self._heartbeat(False)
        while requests := self._next_batch():
            self._run_batch(renderer, requests)
            # Finished jobs hold pictures, failed ones their frames' tensors.
            del requests
            self._heartbeat(False)

    def _next_batch(self) -> list[EngineRequest]:
        """The orders to run next; none once closed."""
        batch: list[QueueEntry[EngineRequest]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: len(self._scheduler) or self._closed)
                if not len(self._scheduler):
                    return []
                self._changed.wait_for(self._batch_ready, self._gather_s)
                # Meanwhile jobs may have left the line, the last one too.
                if len(self._scheduler):
                    batch = self._scheduler.next_batch(self._limiter.max_pixels)
        for place in batch:
            metrics.PASSED_OVER.observe(place.passed_over)
        return [place.item for place in batch]

    def _batch_ready(self) -> bool:
        """Whether a batch gains nothing by waiting for more jobs."""
        return (
            not self._announced
            or not len(self._scheduler)
            or self._scheduler.is_full(self._limiter.max_pixels)
        )

    def _run_batch(self, renderer: Renderer, requests: Sequence[EngineRequest]) -> None:
        started_s = monotonic()
        progress = BatchProgress(
            [self._with_heartbeat(request.report) for request in requests], image_slices(requests)
        )
        family, pixels = (
            requests[0].scheduling_key.family,
            sum(request.scheduling_key.pixels for request in requests),
        )
        try:
            with self._limiter.measure(family, pixels):
                pictures = renderer.render([request.job for request in requests], progress)
            progress.end_stage()
            metrics.BATCH_JOBS.observe(len(requests))
            for stage, seconds in progress.seconds.items():
                metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        except BatchCanceled:
            self._scheduler.invalidate()
            pictures = [[] for _ in requests]
        except BaseException as exc:
            if self._memory.is_lost(exc):
                # No job is to fail of it.
                raise
            self._scheduler.invalidate()
            error = self._memory.as_worker_error(exc)
            if len(requests) == 1 or isinstance(exc, NoRoomForWeights):
                for request in requests:
                    request.done.set_exception(error)
                return
            # One of them cannot be done, or all are too many at once: halves find out which.
            logger.warning("a batch of %d failed, its halves again apart: %s", len(requests), error)
            metrics.BATCHES_SPLIT.labels(type(error).__name__).inc()
            middle = len(requests) // 2
            self._run_batch(renderer, requests[:middle])
            self._run_batch(renderer, requests[middle:])
            return
        for place, (request, images) in enumerate(zip(requests, pictures, strict=True)):
            if place in progress.job_errors:
                request.done.set_exception(progress.job_errors[place])
                continue
            waited_s = started_s - request.enqueued_at
            request.done.set_result(RenderOutput(images, waited_s, progress.seconds, len(requests)))

    def _with_heartbeat(self, report: ProgressCallback) -> ProgressCallback:
        def beat_and_tell(stage: Stage, step: int, steps: int) -> None:
            self._heartbeat(True)
            report(stage, step, steps)

        return beat_and_tell
