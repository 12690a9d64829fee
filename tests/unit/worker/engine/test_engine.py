"""The engine: whose turn it is, with whom; a job's trouble stays the job's own."""

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
from imagefleet_worker.device.errors import NoRoomForWeights
from imagefleet_worker.device.memory import CPU_MEMORY
from imagefleet_worker.engine.batch_limit import BatchSizeLimiter, UnmeasuredMemory
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.engine.requests import RenderOutput
from imagefleet_worker.jobs.leases import Requeue
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

PICTURE = Image.new("RGB", (2, 2))


def job(name: str) -> ResolvedUpscale:
    request = UpscaleRequest(images=(ImageRef(key=name),), scale=2)
    return ResolvedUpscale(request, UpscaleInput(PICTURE, None, None, None), None)


class Scripted:
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
        return [[PICTURE]]


@pytest.fixture
def renderer() -> Scripted:
    return Scripted()


@pytest.fixture
def heartbeats() -> list[bool]:
    return []


@pytest.fixture
def engine(renderer: Scripted, heartbeats: list[bool]) -> Iterator[Engine]:
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
    time.sleep(0.05)  # So that the next order is surely later.
    return future


def raising(error: Exception) -> Callable[[BatchProgress], None]:
    def act(_: BatchProgress) -> None:
        raise error

    return act


def test_jobs_are_rendered_in_the_order_they_came_on_one_thread(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    gate = Event()
    renderer.script["a"] = lambda _: assert_set(gate)
    futures = [submit(pool, engine, name) for name in "abcde"]
    gate.set()
    for future in futures:
        assert future.result(30).images == [PICTURE]
    assert renderer.rendered == list("abcde")
    assert renderer.threads == {engine.ident}


def assert_set(gate: Event) -> None:
    assert gate.wait(30)


def test_the_time_in_the_queue_and_on_the_device_are_told(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    renderer.script["slow"] = lambda _: time.sleep(0.6)
    slow, waiting = submit(pool, engine, "slow"), submit(pool, engine, "waiting")
    first, second = slow.result(30), waiting.result(30)
    assert first.waited_s < 0.1
    assert first.stages_s["upscale"] >= 0.6
    assert second.waited_s > 0.2
    assert second.stages_s["upscale"] < 0.1


@pytest.mark.parametrize("error", [CorruptFile("broken"), ValueError("a bug"), KeyError("x")])
def test_an_error_is_the_jobs_own_and_the_engine_lives_on(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor, error: Exception
) -> None:
    renderer.script["bad"] = raising(error)
    bad, good = submit(pool, engine, "bad"), submit(pool, engine, "good")
    assert bad.exception(5) is error
    assert good.result(30).images == [PICTURE]


@pytest.mark.parametrize("error", [JobCanceled("j"), Requeue("j")])
def test_a_job_that_must_stop_stops_at_its_next_step(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor, error: Exception
) -> None:
    steps: list[int] = []

    def report(stage: Stage, step: int, steps_: int) -> None:
        steps.append(step)
        if step == 2:
            raise error

    def hundred(progress: BatchProgress) -> None:
        for _ in range(100):
            progress.step()

    renderer.script["stopped"] = hundred
    stopped, good = submit(pool, engine, "stopped", report), submit(pool, engine, "good")
    assert stopped.exception(5) is error
    assert steps == [0, 1, 2]
    assert good.result(30)


def test_a_device_out_of_memory_is_told_in_our_words(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    renderer.script["big"] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    error = submit(pool, engine, "big").exception(5)
    assert type(error) is OutOfMemory
    assert "smaller size" in str(error)
    assert submit(pool, engine, "good").result(30)


def test_the_parent_hears_of_every_step_and_of_idleness(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor, heartbeats: list[bool]
) -> None:
    renderer.script["steps"] = lambda progress: progress.step()
    submit(pool, engine, "steps").result(30)
    renderer.script["bad"] = raising(ValueError())
    submit(pool, engine, "bad").exception(5)
    wait_for(lambda: len(heartbeats) == 6, 10, "the last of them is told")
    assert heartbeats == [False, True, True, False, True, False]


class Impatient(NullCallbacks):
    """Who waits for a job until a test says that it is canceled."""

    def __init__(self) -> None:
        self.canceled = Event()

    def check_canceled(self) -> None:
        if self.canceled.is_set():
            raise JobCanceled("impatient")


def test_a_job_that_waits_hears_of_its_end_and_leaves_the_line(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    gate, callbacks = Event(), Impatient()
    renderer.script["a"] = lambda _: assert_set(gate)
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


def test_on_a_broken_device_no_job_fails_and_the_process_is_to_end() -> None:
    renderer, aborted, ended = Scripted(), Event(), list[str]()
    engine = Engine(
        lambda: renderer, lambda _: None, max_batch_pixels=0, memory=CPU_MEMORY, abort=aborted.set
    )
    renderer.script["a"] = raising(torch.AcceleratorError("an illegal memory access"))

    def give(name: str) -> None:
        with suppress(Exception):
            engine.render(job(name), ignore)
        ended.append(name)

    for name in "ab":
        Thread(target=give, args=[name], daemon=True).start()
    engine.start()
    assert aborted.wait(30)
    engine.join(30)
    assert ended == []


def test_jobs_taken_before_it_is_closed_are_finished(pool: ThreadPoolExecutor) -> None:
    renderer = Scripted()
    engine = Engine(lambda: renderer, lambda _: None, max_batch_pixels=0)
    futures = [submit(pool, engine, name) for name in "abc"]
    engine.close()
    engine.start()
    assert [future.result(30).images for future in futures] == [[PICTURE]] * 3
    engine.join(30)


def test_a_failed_job_leaves_no_tensors_behind(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    """The traceback of an error holds the frames it went through, and their tensors."""
    ghosts: list[weakref.ref[torch.Tensor]] = []

    def fail(_: BatchProgress) -> None:
        tensor = torch.zeros(10)
        ghosts.append(weakref.ref(tensor))
        raise ValueError

    renderer.script["bad"] = fail
    future = submit(pool, engine, "bad")
    assert future.exception(5) is not None
    del future
    submit(pool, engine, "good").result(30)
    gc.collect()
    assert ghosts[0]() is None


def test_what_was_loaded_before_memory_ran_out_is_freed_before_the_job_hears_of_it(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    """An error of our own, told first, hid torch's, and with it the frames that hold weights."""
    ghosts: list[weakref.ref[torch.Tensor]] = []

    def load(_: BatchProgress) -> None:
        tensor = torch.zeros(10)
        ghosts.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def fail(progress: BatchProgress) -> None:
        try:
            load(progress)
        except torch.OutOfMemoryError as exc:
            raise NoRoomForWeights("cuda has no room for b") from exc

    renderer.script["bad"] = fail
    error = submit(pool, engine, "bad").exception(5)
    assert type(error) is OutOfMemory
    assert str(error) == "cuda has no room for b"
    assert ghosts[0]() is None


def test_a_renderer_that_cannot_be_made_says_why() -> None:
    def impossible() -> Scripted:
        raise WorkerFailure("no attention backend works")

    engine = Engine(impossible, lambda _busy: None, max_batch_pixels=0)
    engine.start()
    with pytest.raises(WorkerFailure, match="no attention backend"):
        engine.ready.result(timeout=10)


class LimitedRenderer:
    """A renderer with room for so many pictures; notes the size of each batch it is given."""

    def __init__(self, limiter: int = 10**9) -> None:
        self.limiter = limiter
        self.batches: list[int] = []
        self.entered, self.gate = Event(), Event()

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        self.batches.append(len(jobs))
        self.entered.set()
        assert self.gate.wait(10)
        if len(jobs) > self.limiter:
            raise torch.OutOfMemoryError("no room")
        return [[PICTURE] for _ in jobs]


@pytest.fixture(scope="module")
def generate(demo_models: Path) -> ResolvedJob:
    """Any number of it fit into one batch, of 64 x 64 pixels each."""
    return resolved(ModelStore(demo_models), width=64, height=64)


class Host:
    """An engine on a renderer of the test's own, and threads that give it jobs."""

    def __init__(
        self, renderer: LimitedRenderer, generate: ResolvedJob, gather_s: float, most: int = 8
    ) -> None:
        self.renderer, self._generate = renderer, generate
        self.broken = Event()
        self.engine = Engine(
            lambda: renderer,
            lambda _: None,
            max_batch_pixels=most * 64 * 64,
            gather_s=gather_s,
            memory=CPU_MEMORY,
            abort=self.broken.set,
        )
        self._pool = ThreadPoolExecutor(32)

    def __enter__(self) -> "Host":
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.gate.set()
        self.engine.close()
        self.engine.join(10)
        self._pool.shutdown()

    def give(
        self, reservation: object = None, callbacks: JobCallbacks = NULL_CALLBACKS
    ) -> Future[RenderOutput]:
        return self._pool.submit(
            self.engine.render, self._generate, ignore, callbacks, reservation=reservation
        )

    def batch_of(self, count: int) -> list[RenderOutput]:
        """Jobs that the engine has all at once."""
        with ExitStack() as stack:
            tickets = [stack.enter_context(self.engine.announce()) for _ in range(count)]
            given = [self.give(reservation) for reservation in tickets]
            return [one.result(10) for one in given]


LONG_S = 600.0
"""A window that ends no test: only what is tested ends the wait."""


def test_a_batch_waits_for_jobs_on_their_way_until_all_are_there(generate: ResolvedJob) -> None:
    with Host(LimitedRenderer(), generate, LONG_S) as host, host.engine.announce() as late:
        early = host.give()
        assert not host.renderer.entered.wait(0.1)
        other = host.give(late)
        host.renderer.gate.set()
        assert [early.result(10).batch_jobs, other.result(10).batch_jobs] == [2, 2]


def test_a_job_alone_waits_for_nobody(generate: ResolvedJob) -> None:
    with Host(LimitedRenderer(), generate, LONG_S) as host, host.engine.announce() as reservation:
        host.renderer.gate.set()
        assert host.give(reservation).result(10).batch_jobs == 1


def test_a_full_batch_waits_for_nobody(generate: ResolvedJob) -> None:
    with Host(LimitedRenderer(), generate, LONG_S, most=1) as host, host.engine.announce():
        host.renderer.gate.set()
        assert host.give().result(10).batch_jobs == 1


def test_nobody_waits_longer_than_the_window(generate: ResolvedJob) -> None:
    with Host(LimitedRenderer(), generate, 0.01) as host, host.engine.announce():
        host.renderer.gate.set()
        assert host.give().result(10).batch_jobs == 1


def test_a_job_that_failed_on_its_way_is_waited_for_no_more(generate: ResolvedJob) -> None:
    with Host(LimitedRenderer(), generate, LONG_S) as host:
        host.renderer.gate.set()
        early: list[Future[RenderOutput]] = []
        with suppress(CorruptFile), host.engine.announce():
            early.append(host.give())
            raise CorruptFile("found while it was resolved")
        assert early[0].result(10).batch_jobs == 1


def test_the_only_job_may_leave_the_line_while_its_batch_waits_for_others(
    generate: ResolvedJob,
) -> None:
    """The engine looked for who is next in an empty line, and ended the process."""
    callbacks = Impatient()
    with Host(LimitedRenderer(), generate, LONG_S) as host, host.engine.announce() as late:
        host.renderer.gate.set()
        leaving = host.give(callbacks=callbacks)
        assert not host.renderer.entered.wait(0.1)
        callbacks.canceled.set()
        with pytest.raises(JobCanceled):
            leaving.result(30)
        with host.engine.announce():
            """It is looked anew who is there."""
        assert not host.broken.wait(0.1)
        assert host.give(late).result(30).batch_jobs == 1


def test_after_running_out_of_memory_batches_are_smaller_and_grow_back_slowly(
    generate: ResolvedJob,
) -> None:
    renderer = LimitedRenderer(limiter=5)
    renderer.gate.set()
    with Host(renderer, generate, LONG_S) as host:
        assert [one.batch_jobs for one in host.batch_of(8)] == [4] * 8
        assert renderer.batches == [8, 4, 4], "in halves, and nothing is lost"
        renderer.batches.clear()
        host.batch_of(8)
        assert renderer.batches == [4, 4], "the same batch is not tried again"
        renderer.limiter = 8
        for _ in range(40):
            host.batch_of(8)
        assert renderer.batches[-1] == 8
        firsts = [renderer.batches.index(size) for size in (4, 5, 6, 7, 8)]
        assert firsts == sorted(firsts), "step by step"


class NoWeights(LimitedRenderer):
    """A renderer whose device has no room for the checkpoint."""

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        super().render(jobs, progress)
        raise NoRoomForWeights("cuda has no room for b")


def test_a_checkpoint_that_does_not_fit_is_loaded_once_for_its_batch(generate: ResolvedJob) -> None:
    """Halves of halves each loaded it: fifteen times for eight jobs."""
    renderer = NoWeights()
    renderer.gate.set()
    with Host(renderer, generate, LONG_S) as host:
        for _ in range(2):
            with pytest.raises(OutOfMemory, match="cuda has no room for b"):
                host.batch_of(8)
    assert renderer.batches == [8, 8], "it says nothing of the batches that fit"


def test_what_does_not_fit_for_one_family_says_nothing_of_another() -> None:
    limiter = BatchSizeLimiter(1000, CPU_MEMORY)
    with suppress(torch.OutOfMemoryError), limiter.measure("sdxl", 800):
        raise torch.OutOfMemoryError("no room")
    assert (limiter.max_pixels("sdxl"), limiter.max_pixels("sd1")) == (400, 1000)


class Counted(UnmeasuredMemory):
    """A device of 1000 bytes on which a batch takes 100 and 2 for each pixel."""

    def __init__(self) -> None:
        self.free, self.pixels, self.hidden = 1000, 0, False

    def free_bytes(self) -> int | None:
        return self.free

    def begin(self) -> None:
        self.pixels = 0

    def peak_bytes(self) -> int | None:
        return None if self.hidden else 100 + 2 * self.pixels

    def run(self, limiter: BatchSizeLimiter, pixels: int) -> None:
        with limiter.measure("sd1", pixels):
            self.pixels = pixels


def test_free_memory_bounds_a_batch_by_what_a_pixel_took() -> None:
    memory = Counted()
    limiter = BatchSizeLimiter(10**6, memory)
    assert limiter.max_pixels("sd1") == 10**6, "nothing is known yet"
    memory.run(limiter, 100)
    assert limiter.max_pixels("sd1") == 900 / 3
    memory.run(limiter, 300)
    assert limiter.max_pixels("sd1") == 900 * 300 // 700, "a larger batch tells better"
    memory.run(limiter, 10)
    assert limiter.max_pixels("sd1") == 900 * 300 // 700, "a smaller one tells nothing"
    memory.hidden = True
    memory.run(limiter, 500)
    assert limiter.max_pixels("sd1") == 900 * 300 // 700, "nor does one of which not all is known"
    memory.free = 100
    assert limiter.max_pixels("sd1") == 90 * 300 // 700
