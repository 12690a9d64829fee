"""The engine: order, batching, cancellation, and errors that affect only their own job."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread, get_ident

import pytest
import torch
from PIL import Image

from imagefleet_shared.errors import CorruptFile, JobCanceled, OutOfMemory, WorkerFailure
from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.requests import UpscaleRequest
from imagefleet_shared.status import Stage
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.device.memory import CPU_MEMORY
from imagefleet_worker.engine.batch_limit import BatchSizeLimiter, UnmeasuredMemory
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.engine.engine_request import RenderOutput
from imagefleet_worker.jobs.cancellation import Requeue
from imagefleet_worker.progress import (
    NULL_CALLBACKS,
    BatchProgress,
    JobCallbacks,
    NullCallbacks,
    ProgressCallback,
)
from imagefleet_worker.requests.resolved import ResolvedJob, ResolvedUpscale
from imagefleet_worker.upscale.decode_input import UpscaleInput
from tests.fleet import wait_for
from tests.jobs import resolved

IMAGE = Image.new("RGB", (2, 2))


def job(name: str) -> ResolvedUpscale:
    request = UpscaleRequest(images=(ImageRef(key=name),), scale=2)
    return ResolvedUpscale(request, UpscaleInput(IMAGE, None, None, None), None)


class ScriptedRenderer:
    """A renderer that does what the test says for each job."""

    def __init__(self) -> None:
        self.script: dict[str, Callable[[BatchProgress], None]] = {}
        self.rendered: list[str] = []
        self.threads: set[int] = set()

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        [job] = jobs
        assert isinstance(job, ResolvedUpscale)
        name = job.request.images[0].key
        self.threads.add(get_ident())
        self.rendered.append(name)
        progress.begin_stage("upscale", 2)
        if name in self.script:
            self.script[name](progress)
        return [[IMAGE]]


@pytest.fixture
def renderer() -> ScriptedRenderer:
    return ScriptedRenderer()


@pytest.fixture
def heartbeats() -> list[bool]:
    return []


@pytest.fixture
def engine(renderer: ScriptedRenderer, heartbeats: list[bool]) -> Iterator[Engine]:
    engine = Engine(lambda: renderer, heartbeats.append, max_batch_pixels=0, memory=CPU_MEMORY)
    engine.start()
    yield engine
    engine.close()
    engine.join(30)
    assert not engine.is_alive()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ignore(stage: Stage, step: int, steps: int) -> None:
    pass


def submit(
    pool: ThreadPoolExecutor, engine: Engine, name: str, report: ProgressCallback = ignore
) -> Future[RenderOutput]:
    future = pool.submit(engine.render, job(name), report)
    time.sleep(0.05)  # So that the next request is surely later.
    return future


def raising(error: Exception) -> Callable[[BatchProgress], None]:
    def act(_: BatchProgress) -> None:
        raise error

    return act


def test_jobs_are_rendered_in_order_of_arrival_on_one_thread(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor
) -> None:
    gate = Event()
    renderer.script["a"] = lambda _: wait_for_gate(gate)
    futures = [submit(pool, engine, name) for name in "abcde"]
    gate.set()
    for future in futures:
        assert future.result(30).images == [IMAGE]
    assert renderer.rendered == list("abcde")
    assert renderer.threads == {engine.ident}


def wait_for_gate(gate: Event) -> None:
    assert gate.wait(30)


def test_the_times_in_the_queue_and_on_the_device_are_measured(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor
) -> None:
    renderer.script["slow"] = lambda _: time.sleep(0.6)
    slow, waiting = submit(pool, engine, "slow"), submit(pool, engine, "waiting")
    first, second = slow.result(30), waiting.result(30)
    assert first.waited_s < 0.1
    assert first.stages_s["upscale"] >= 0.6
    assert second.waited_s > 0.2
    assert second.stages_s["upscale"] < 0.1


@pytest.mark.parametrize("error", [CorruptFile("broken"), ValueError("a bug"), KeyError("x")])
def test_an_error_fails_only_its_own_job(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor, error: Exception
) -> None:
    renderer.script["bad"] = raising(error)
    bad, good = submit(pool, engine, "bad"), submit(pool, engine, "good")
    assert bad.exception(5) is error
    assert good.result(30).images == [IMAGE]


@pytest.mark.parametrize("error", [JobCanceled("j"), Requeue("j")])
def test_a_job_that_must_stop_stops_at_its_next_step(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor, error: Exception
) -> None:
    steps: list[int] = []

    def report(stage: Stage, step: int, steps_: int) -> None:
        steps.append(step)
        if step == 2:
            raise error

    def hundred_steps(progress: BatchProgress) -> None:
        for _ in range(100):
            progress.step()

    renderer.script["stopped"] = hundred_steps
    stopped, good = submit(pool, engine, "stopped", report), submit(pool, engine, "good")
    assert stopped.exception(5) is error
    assert steps == [0, 1, 2]
    assert good.result(30)


def test_running_out_of_device_memory_is_our_own_error(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor
) -> None:
    renderer.script["big"] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    error = submit(pool, engine, "big").exception(5)
    assert type(error) is OutOfMemory
    assert "smaller size" in str(error)
    assert submit(pool, engine, "good").result(30)


def test_every_step_and_idleness_send_a_heartbeat(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor, heartbeats: list[bool]
) -> None:
    renderer.script["steps"] = lambda progress: progress.step()
    submit(pool, engine, "steps").result(30)
    renderer.script["bad"] = raising(ValueError())
    submit(pool, engine, "bad").exception(5)
    wait_for(lambda: len(heartbeats) == 6, 10, "the last heartbeat is sent")
    assert heartbeats == [False, True, True, False, True, False]


class CancelableCallbacks(NullCallbacks):
    """Callbacks that cancel the job once a test sets `canceled`."""

    def __init__(self) -> None:
        self.canceled = Event()

    def check_canceled(self) -> None:
        if self.canceled.is_set():
            raise JobCanceled("job")


def test_a_queued_job_that_is_canceled_is_dequeued(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor
) -> None:
    gate, callbacks = Event(), CancelableCallbacks()
    renderer.script["a"] = lambda _: wait_for_gate(gate)
    first = submit(pool, engine, "a")
    waiting = pool.submit(engine.render, job("b"), ignore, callbacks)
    last = submit(pool, engine, "c")
    callbacks.canceled.set()
    with pytest.raises(JobCanceled):
        waiting.result(30)
    assert not first.done()
    gate.set()
    last.result(30)
    assert renderer.rendered == ["a", "c"]


def test_on_a_broken_device_no_job_fails_and_the_process_is_aborted() -> None:
    renderer, aborted, ended = ScriptedRenderer(), Event(), list[str]()
    engine = Engine(
        lambda: renderer, lambda _: None, max_batch_pixels=0, memory=CPU_MEMORY, abort=aborted.set
    )
    renderer.script["a"] = raising(torch.AcceleratorError("an illegal memory access"))

    def render(name: str) -> None:
        with suppress(Exception):
            engine.render(job(name), ignore)
        ended.append(name)

    for name in "ab":
        Thread(target=render, args=[name], daemon=True).start()
    engine.start()
    assert aborted.wait(30)
    engine.join(30)
    assert ended == []


def test_jobs_queued_before_it_is_closed_are_finished(pool: ThreadPoolExecutor) -> None:
    renderer = ScriptedRenderer()
    engine = Engine(lambda: renderer, lambda _: None, max_batch_pixels=0)
    futures = [submit(pool, engine, name) for name in "abc"]
    engine.close()
    engine.start()
    assert [future.result(30).images for future in futures] == [[IMAGE]] * 3
    engine.join(30)


def test_a_failed_job_frees_its_tensors(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor
) -> None:
    """The traceback of an error holds the frames it went through, and their tensors."""
    freed: list[weakref.ref[torch.Tensor]] = []

    def fail(_: BatchProgress) -> None:
        tensor = torch.zeros(10)
        freed.append(weakref.ref(tensor))
        raise ValueError

    renderer.script["bad"] = fail
    future = submit(pool, engine, "bad")
    assert future.exception(5) is not None
    del future
    submit(pool, engine, "good").result(30)
    gc.collect()
    assert freed[0]() is None


def test_what_was_loaded_before_memory_ran_out_is_freed_before_the_job_fails(
    engine: Engine, renderer: ScriptedRenderer, pool: ThreadPoolExecutor
) -> None:
    """Our own error hid torch's, and with it the traceback whose frames reference weights."""
    freed: list[weakref.ref[torch.Tensor]] = []

    def load(_: BatchProgress) -> None:
        tensor = torch.zeros(10)
        freed.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def fail(progress: BatchProgress) -> None:
        try:
            load(progress)
        except torch.OutOfMemoryError as exc:
            raise ModelDoesNotFit("cuda has no room for b") from exc

    renderer.script["bad"] = fail
    error = submit(pool, engine, "bad").exception(5)
    assert type(error) is OutOfMemory
    assert str(error) == "cuda has no room for b"
    assert freed[0]() is None


def test_ready_has_the_error_of_a_renderer_that_cannot_be_made() -> None:
    def impossible() -> ScriptedRenderer:
        raise WorkerFailure("no attention backend works")

    engine = Engine(impossible, lambda _busy: None, max_batch_pixels=0)
    engine.start()
    with pytest.raises(WorkerFailure, match="no attention backend"):
        engine.ready.result(timeout=10)


class LimitedRenderer:
    """A renderer that runs out of memory above `capacity` jobs; records its batch sizes."""

    def __init__(self, capacity: int = 10**9) -> None:
        self.capacity = capacity
        self.batches: list[int] = []
        self.entered, self.gate = Event(), Event()

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        self.batches.append(len(jobs))
        self.entered.set()
        assert self.gate.wait(10)
        if len(jobs) > self.capacity:
            raise torch.OutOfMemoryError("out of memory")
        return [[IMAGE] for _ in jobs]


@pytest.fixture(scope="module")
def generate(demo_models: Path) -> ResolvedJob:
    """A job of 64 x 64 pixels that can share a batch with itself."""
    return resolved(ModelStore(demo_models), width=64, height=64)


class EngineHarness:
    """A running engine with the test's renderer, and threads that submit jobs to it."""

    def __init__(
        self, renderer: LimitedRenderer, generate: ResolvedJob, gather_s: float, max_jobs: int = 8
    ) -> None:
        self.renderer, self._generate = renderer, generate
        self.aborted = Event()
        self.engine = Engine(
            lambda: renderer,
            lambda _: None,
            max_batch_pixels=max_jobs * 64 * 64,
            gather_s=gather_s,
            memory=CPU_MEMORY,
            abort=self.aborted.set,
        )
        self._pool = ThreadPoolExecutor(32)

    def __enter__(self) -> "EngineHarness":
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.gate.set()
        self.engine.close()
        self.engine.join(10)
        self._pool.shutdown()

    def submit(
        self, reservation: object = None, callbacks: JobCallbacks = NULL_CALLBACKS
    ) -> Future[RenderOutput]:
        return self._pool.submit(
            self.engine.render, self._generate, ignore, callbacks, reservation=reservation
        )

    def batch_of(self, count: int) -> list[RenderOutput]:
        """Submit announced jobs, so that the engine schedules them together."""
        with ExitStack() as stack:
            reservations = [stack.enter_context(self.engine.announce()) for _ in range(count)]
            futures = [self.submit(reservation) for reservation in reservations]
            return [future.result(10) for future in futures]


LONG_S = 600.0
"""A gather window longer than any test: only what is tested ends the wait."""


def test_a_batch_waits_for_announced_jobs(generate: ResolvedJob) -> None:
    with (
        EngineHarness(LimitedRenderer(), generate, LONG_S) as harness,
        harness.engine.announce() as late,
    ):
        early = harness.submit()
        assert not harness.renderer.entered.wait(0.1)
        other = harness.submit(late)
        harness.renderer.gate.set()
        assert [early.result(10).batch_jobs, other.result(10).batch_jobs] == [2, 2]


def test_a_job_without_other_reservations_does_not_wait(generate: ResolvedJob) -> None:
    with (
        EngineHarness(LimitedRenderer(), generate, LONG_S) as harness,
        harness.engine.announce() as reservation,
    ):
        harness.renderer.gate.set()
        assert harness.submit(reservation).result(10).batch_jobs == 1


def test_a_full_batch_does_not_wait(generate: ResolvedJob) -> None:
    with (
        EngineHarness(LimitedRenderer(), generate, LONG_S, max_jobs=1) as harness,
        harness.engine.announce(),
    ):
        harness.renderer.gate.set()
        assert harness.submit().result(10).batch_jobs == 1


def test_no_batch_waits_longer_than_the_window(generate: ResolvedJob) -> None:
    with EngineHarness(LimitedRenderer(), generate, 0.01) as harness, harness.engine.announce():
        harness.renderer.gate.set()
        assert harness.submit().result(10).batch_jobs == 1


def test_a_job_that_failed_before_it_was_queued_is_not_waited_for(generate: ResolvedJob) -> None:
    with EngineHarness(LimitedRenderer(), generate, LONG_S) as harness:
        harness.renderer.gate.set()
        early: list[Future[RenderOutput]] = []
        with suppress(CorruptFile), harness.engine.announce():
            early.append(harness.submit())
            raise CorruptFile("found while it was resolved")
        assert early[0].result(10).batch_jobs == 1


def test_the_only_queued_job_can_be_canceled_while_its_batch_waits_for_others(
    generate: ResolvedJob,
) -> None:
    """The engine scheduled from an empty queue, and ended the process."""
    callbacks = CancelableCallbacks()
    with (
        EngineHarness(LimitedRenderer(), generate, LONG_S) as harness,
        harness.engine.announce() as late,
    ):
        harness.renderer.gate.set()
        leaving = harness.submit(callbacks=callbacks)
        assert not harness.renderer.entered.wait(0.1)
        callbacks.canceled.set()
        with pytest.raises(JobCanceled):
            leaving.result(30)
        with harness.engine.announce():
            """The engine checks its queue again."""
        assert not harness.aborted.wait(0.1)
        assert harness.submit(late).result(30).batch_jobs == 1


def test_after_running_out_of_memory_batches_are_smaller_and_grow_back_slowly(
    generate: ResolvedJob,
) -> None:
    renderer = LimitedRenderer(capacity=5)
    renderer.gate.set()
    with EngineHarness(renderer, generate, LONG_S) as harness:
        assert [output.batch_jobs for output in harness.batch_of(8)] == [4] * 8
        assert renderer.batches == [8, 4, 4], "in halves, and nothing is lost"
        renderer.batches.clear()
        harness.batch_of(8)
        assert renderer.batches == [4, 4], "the same batch size is not retried"
        renderer.capacity = 8
        for _ in range(40):
            harness.batch_of(8)
        assert renderer.batches[-1] == 8
        firsts = [renderer.batches.index(size) for size in (4, 5, 6, 7, 8)]
        assert firsts == sorted(firsts), "step by step"


class CheckpointTooLargeRenderer(LimitedRenderer):
    """A renderer whose checkpoint does not fit on the device."""

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        super().render(jobs, progress)
        raise ModelDoesNotFit("cuda has no room for b")


def test_a_checkpoint_that_does_not_fit_is_loaded_once_for_its_batch(generate: ResolvedJob) -> None:
    """Each half of a half loaded it again: fifteen times for eight jobs."""
    renderer = CheckpointTooLargeRenderer()
    renderer.gate.set()
    with EngineHarness(renderer, generate, LONG_S) as harness:
        for _ in range(2):
            with pytest.raises(OutOfMemory, match="cuda has no room for b"):
                harness.batch_of(8)
    assert renderer.batches == [8, 8], "it does not limit batches"


def test_the_limit_of_one_family_does_not_apply_to_another() -> None:
    limiter = BatchSizeLimiter(1000, CPU_MEMORY)
    with suppress(torch.OutOfMemoryError), limiter.measure("sdxl", 800):
        raise torch.OutOfMemoryError("out of memory")
    assert (limiter.max_pixels("sdxl"), limiter.max_pixels("sd1")) == (400, 1000)


class FakeMemory(UnmeasuredMemory):
    """1000 bytes of device memory, of which a batch takes 100 and 2 for each pixel."""

    def __init__(self) -> None:
        self.free, self.pixels, self.unknown = 1000, 0, False

    def free_bytes(self) -> int | None:
        return self.free

    def begin_batch(self) -> None:
        self.pixels = 0

    def peak_bytes(self) -> int | None:
        return None if self.unknown else 100 + 2 * self.pixels

    def run(self, limiter: BatchSizeLimiter, pixels: int) -> None:
        with limiter.measure("sd1", pixels):
            self.pixels = pixels


def test_free_memory_limits_a_batch_by_the_measured_bytes_per_pixel() -> None:
    memory = FakeMemory()
    limiter = BatchSizeLimiter(10**6, memory)
    assert limiter.max_pixels("sd1") == 10**6, "nothing is known yet"
    memory.run(limiter, 100)
    assert limiter.max_pixels("sd1") == 900 / 3
    memory.run(limiter, 300)
    assert limiter.max_pixels("sd1") == 900 * 300 // 700, "a larger batch is a better estimate"
    memory.run(limiter, 10)
    assert limiter.max_pixels("sd1") == 900 * 300 // 700, "a smaller batch changes nothing"
    memory.unknown = True
    memory.run(limiter, 500)
    assert limiter.max_pixels("sd1") == 900 * 300 // 700, "nor does an unknown peak"
    memory.free = 100
    assert limiter.max_pixels("sd1") == 90 * 300 // 700
