"""The engine: one job at a time, in order; a job's trouble stays the job's own."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, get_ident

import pytest
import torch
from PIL import Image

from imagefleet_shared.errors import CorruptFile, JobCanceled, OutOfMemory, WorkerFailure
from imagefleet_shared.parts import ImageRef
from imagefleet_shared.requests import UpscaleRequest
from imagefleet_shared.status import Stage
from imagefleet_worker.engine import Engine, Rendered
from imagefleet_worker.lease import HandBack
from imagefleet_worker.ready import ResolvedJob, ResolvedUpscale
from imagefleet_worker.stages import Stages, Tell
from imagefleet_worker.upscale.inputs import UpscaleInput

PICTURE = Image.new("RGB", (2, 2))


def job(name: str) -> ResolvedUpscale:
    request = UpscaleRequest(images=(ImageRef(key=name),), scale=2)
    return ResolvedUpscale(request, UpscaleInput(PICTURE, None, None, None), None)


class Scripted:
    """A renderer that does what the test says for each job."""

    def __init__(self) -> None:
        self.script: dict[str, Callable[[Stages], None]] = {}
        self.rendered: list[str] = []
        self.threads: set[int] = set()

    def render(self, jobs: Sequence[ResolvedJob], stages: Stages) -> list[list[Image.Image]]:
        [job] = jobs
        assert isinstance(job, ResolvedUpscale)
        name = job.request.images[0].key
        self.threads.add(get_ident())
        self.rendered.append(name)
        stages.begin("upscale", 2)
        if name in self.script:
            self.script[name](stages)
        return [[PICTURE]]


@pytest.fixture
def renderer() -> Scripted:
    return Scripted()


@pytest.fixture
def beats() -> list[bool]:
    return []


@pytest.fixture
def engine(renderer: Scripted, beats: list[bool]) -> Iterator[Engine]:
    engine = Engine(lambda: renderer, beats.append, max_batch_pixels=0)
    engine.start()
    yield engine
    engine.close()
    engine.join(5)
    assert not engine.is_alive()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ignore(stage: Stage, step: int, steps: int) -> None:
    pass


def order(
    pool: ThreadPoolExecutor, engine: Engine, name: str, tell: Tell = ignore
) -> Future[Rendered]:
    future = pool.submit(engine.render, job(name), tell)
    time.sleep(0.02)  # So that the next order is surely later.
    return future


def raising(error: Exception) -> Callable[[Stages], None]:
    def act(_: Stages) -> None:
        raise error

    return act


def test_jobs_are_rendered_in_the_order_they_came_on_one_thread(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    gate = Event()
    renderer.script["a"] = lambda _: assert_set(gate)
    futures = [order(pool, engine, name) for name in "abcde"]
    gate.set()
    for future in futures:
        assert future.result(5).images == [PICTURE]
    assert renderer.rendered == list("abcde")
    assert renderer.threads == {engine.ident}


def assert_set(gate: Event) -> None:
    assert gate.wait(5)


def test_the_time_in_the_queue_and_on_the_device_are_told(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    renderer.script["slow"] = lambda _: time.sleep(0.3)
    slow, waiting = order(pool, engine, "slow"), order(pool, engine, "waiting")
    assert slow.result(5).waited_s < 0.1
    assert slow.result(5).stages_s["upscale"] >= 0.3
    assert waiting.result(5).waited_s > 0.2
    assert waiting.result(5).stages_s["upscale"] < 0.1


@pytest.mark.parametrize("error", [CorruptFile("broken"), ValueError("a bug"), KeyError("x")])
def test_an_error_is_the_jobs_own_and_the_engine_lives_on(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor, error: Exception
) -> None:
    renderer.script["bad"] = raising(error)
    bad, good = order(pool, engine, "bad"), order(pool, engine, "good")
    assert bad.exception(5) is error
    assert good.result(5).images == [PICTURE]


@pytest.mark.parametrize("error", [JobCanceled("j"), HandBack("j")])
def test_a_job_that_must_stop_stops_at_its_next_step(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor, error: Exception
) -> None:
    steps: list[int] = []

    def tell(stage: Stage, step: int, steps_: int) -> None:
        steps.append(step)
        if step == 2:
            raise error

    def hundred(stages: Stages) -> None:
        for _ in range(100):
            stages.step()

    renderer.script["stopped"] = hundred
    stopped, good = order(pool, engine, "stopped", tell), order(pool, engine, "good")
    assert stopped.exception(5) is error
    assert steps == [0, 1, 2]
    assert good.result(5)


def test_a_device_out_of_memory_is_told_in_our_words(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    renderer.script["big"] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    error = order(pool, engine, "big").exception(5)
    assert type(error) is OutOfMemory
    assert "smaller size" in str(error)
    assert order(pool, engine, "good").result(5)


def test_the_parent_hears_of_every_step_and_of_idleness(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor, beats: list[bool]
) -> None:
    renderer.script["steps"] = lambda stages: stages.step()
    order(pool, engine, "steps").result(5)
    renderer.script["bad"] = raising(ValueError())
    order(pool, engine, "bad").exception(5)
    time.sleep(0.05)
    assert beats == [False, True, True, False, True, False]


def test_jobs_taken_before_it_is_closed_are_finished(pool: ThreadPoolExecutor) -> None:
    renderer = Scripted()
    engine = Engine(lambda: renderer, lambda _: None, max_batch_pixels=0)
    futures = [order(pool, engine, name) for name in "abc"]
    engine.close()
    engine.start()
    assert [future.result(5).images for future in futures] == [[PICTURE]] * 3
    engine.join(5)


def test_a_failed_job_leaves_no_tensors_behind(
    engine: Engine, renderer: Scripted, pool: ThreadPoolExecutor
) -> None:
    """The traceback of an error holds the frames it went through, and their tensors."""
    ghosts: list[weakref.ref[torch.Tensor]] = []

    def fail(_: Stages) -> None:
        tensor = torch.zeros(10)
        ghosts.append(weakref.ref(tensor))
        raise ValueError

    renderer.script["bad"] = fail
    future = order(pool, engine, "bad")
    assert future.exception(5) is not None
    del future
    order(pool, engine, "good").result(5)
    gc.collect()
    assert ghosts[0]() is None


def test_a_renderer_that_cannot_be_made_says_why() -> None:
    def impossible() -> Scripted:
        raise WorkerFailure("no attention backend works")

    engine = Engine(impossible, lambda _busy: None, max_batch_pixels=0)
    engine.start()
    with pytest.raises(WorkerFailure, match="no attention backend"):
        engine.ready.result(timeout=10)
