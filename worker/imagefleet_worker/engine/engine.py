"""The one thread that uses the device: renders queued jobs in batches and reports progress."""

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
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.engine.batch_key import scheduling_key
from imagefleet_worker.engine.batch_limit import UNMEASURED_MEMORY, BatchSizeLimiter, DeviceMemory
from imagefleet_worker.engine.engine_request import EngineRequest, RenderOutput, image_slices
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
"""How often a queued job is checked for cancellation."""


class Renderer(Protocol):
    """Renders jobs on the device."""

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        """Render a batch of jobs of equal `batch_key`; called on the engine's thread.

        Returns:
            The images of each job, in the order of `jobs`.

        Raises:
            ImagefleetError: a job's request cannot be fulfilled.
            BatchCanceled: every job of the batch must stop.
        """
        ...


def end_process() -> None:
    """Exit this process at once, whatever its other threads do."""
    os._exit(1)


class Engine(Thread):
    """Renders queued jobs in batches, in the order of its `BatchScheduler`.

    Args:
        make_renderer: called on the engine's thread, like everything that computes: if a second
            thread ever computes, OpenMP counts twice the threads, and its threads then sleep
            between operators, which took 2.4 times as long on two cores.
        heartbeat: called with True at every step and with False when the engine goes idle, so that
            a parent process can tell a stall from idleness.
        max_batch_pixels: limit of all images of a batch; 0 renders every job alone.
        gather_s: how long a batch that is not full waits for announced jobs.
        memory: of the device.
        abort: called when the device or this thread is broken; ends the process, so that its jobs
            are leased by others.
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
        """Done once the renderer is made; has the exception if that failed."""
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
        """Announce a job that is being prepared: batches that are not full wait a little for it.

        Yields:
            The reservation to pass to `render`; it lapses when the context ends.
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
        """Render a job; blocks the calling thread until it is done.

        Args:
            job: to render.
            report: called at every step, on the engine's thread.
            callbacks: receive previews, and are checked for cancellation while the job is queued.
            priority: among the queued jobs.
            alone: never batch the job with others.
            reservation: from `announce`, if the job was announced.
            while_waiting: called on the calling thread while the job is queued; must not compute.

        Raises:
            ImagefleetError: the request cannot be fulfilled.
            JobCanceled, JobTimeout, LeaseLost, Requeue: whatever `report` or `callbacks` raised.
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
        """Wait until a request is scheduled; if its job must stop before, dequeue it and raise."""
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
        """Finish the queued jobs, then end the thread."""
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
        except BaseException:  # Otherwise queued jobs would wait for ever, with renewed leases.
            logger.critical("the engine failed; this process exits", exc_info=True)
            self._abort()

    def _serve(self, renderer: Renderer) -> None:
        self._heartbeat(False)
        while requests := self._next_batch():
            self._run_batch(renderer, requests)
            # Finished jobs reference images, failed ones the tensors of their traceback's frames.
            del requests
            self._heartbeat(False)

    def _next_batch(self) -> list[EngineRequest]:
        """The requests to run next; none once closed."""
        batch: list[QueueEntry[EngineRequest]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: len(self._scheduler) or self._closed)
                if not len(self._scheduler):
                    return []
                self._changed.wait_for(self._batch_ready, self._gather_s)
                # Jobs may have been canceled meanwhile, even the last one.
                if len(self._scheduler):
                    batch = self._scheduler.next_batch(self._limiter.max_pixels)
        for entry in batch:
            metrics.PASSED_OVER.observe(entry.passed_over)
        return [entry.item for entry in batch]

    def _batch_ready(self) -> bool:
        """Whether waiting for more jobs cannot enlarge the batch."""
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
        family = requests[0].scheduling_key.family
        pixels = sum(request.scheduling_key.pixels for request in requests)
        try:
            with self._limiter.measure(family, pixels):
                rendered = renderer.render([request.job for request in requests], progress)
            progress.end_stage()
            metrics.BATCH_JOBS.observe(len(requests))
            for stage, seconds in progress.seconds.items():
                metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        except BatchCanceled:
            self._scheduler.invalidate()
            rendered = [[] for _ in requests]
        except BaseException as exc:
            if self._memory.is_lost(exc):
                # The jobs are not at fault: they must not fail.
                raise
            self._scheduler.invalidate()
            error = self._memory.as_worker_error(exc)
            if len(requests) == 1 or isinstance(exc, ModelDoesNotFit):
                for request in requests:
                    request.done.set_exception(error)
                return
            # Either one job is at fault or the batch is too large: retrying halves finds out.
            logger.warning("a batch of %d failed, retrying in halves: %s", len(requests), error)
            metrics.BATCHES_SPLIT.labels(type(error).__name__).inc()
            middle = len(requests) // 2
            self._run_batch(renderer, requests[:middle])
            self._run_batch(renderer, requests[middle:])
            return
        for index, (request, images) in enumerate(zip(requests, rendered, strict=True)):
            if index in progress.job_errors:
                request.done.set_exception(progress.job_errors[index])
                continue
            waited_s = started_s - request.enqueued_at
            request.done.set_result(RenderOutput(images, waited_s, progress.seconds, len(requests)))

    def _with_heartbeat(self, report: ProgressCallback) -> ProgressCallback:
        def report_with_heartbeat(stage: Stage, step: int, steps: int) -> None:
            self._heartbeat(True)
            report(stage, step, steps)

        return report_with_heartbeat
