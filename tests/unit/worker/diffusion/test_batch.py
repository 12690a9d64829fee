"""Which jobs are batched, and that a job's result does not depend on its batch."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagefleet_shared.errors import JobCanceled
from imagefleet_shared.request_parts import HiresPass, ImageRef
from imagefleet_shared.requests import UpscaleRequest
from imagefleet_shared.status import Stage
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.engine.batch_key import batch_key, pixels_of, scheduling_key
from imagefleet_worker.engine.engine import Engine, Renderer
from imagefleet_worker.engine.engine_request import RenderOutput
from imagefleet_worker.engine.scheduler import BatchScheduler
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.requests.resolved import ResolvedGenerate, ResolvedJob, ResolvedUpscale
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.upscale.decode_input import UpscaleInput
from tests.jobs import resolved

PROMPTS = ("a red fox", "a blue house by the sea", "", "forty lanterns")


@pytest.fixture(scope="module")
def models(demo_models: Path) -> ModelStore:
    return ModelStore(demo_models)


@pytest.fixture(scope="module")
def renderer(models: ModelStore) -> Renderer:
    return build_renderer(WorkerSettings(), models, torch.device("cpu"))


def job(
    models: ModelStore, prompt: str = "a fox", seed: int = 1, **fields: object
) -> ResolvedGenerate:
    settings: dict[str, object] = {"num_inference_steps": 4, "width": 64, "height": 64, **fields}
    return resolved(models, prompt=prompt, seed=seed, **settings)


def ignore_progress(stage: Stage, step: int, steps: int) -> None:
    """Report nothing."""


def through_engine(
    renderer: Renderer,
    jobs: Sequence[ResolvedJob],
    reports: Sequence[Callable[[Stage, int, int], None]],
) -> list[RenderOutput | Exception]:
    """Render jobs on a fresh engine, all announced before the first is enqueued."""
    engine = Engine(lambda: renderer, lambda _busy: None, max_batch_pixels=10**9, gather_s=60)

    def render_one(
        job: ResolvedJob, report: Callable[[Stage, int, int], None], reservation: object
    ) -> RenderOutput | Exception:
        try:
            return engine.render(job, report, reservation=reservation)
        except Exception as exc:
            return exc

    with ExitStack() as stack, ThreadPoolExecutor(len(jobs)) as pool:
        reservations = [stack.enter_context(engine.announce()) for _ in jobs]
        engine.start()
        results = list(pool.map(render_one, jobs, reports, reservations))
    engine.close()
    engine.join()
    return results


def first_batch(jobs: Sequence[ResolvedJob], max_pixels: int) -> list[int]:
    """Indices of the jobs in the first batch."""
    scheduler: BatchScheduler[int] = BatchScheduler()
    for index, job in enumerate(jobs):
        scheduler.enqueue(index, scheduling_key(job, "normal"))
    return [entry.item for entry in scheduler.next_batch(lambda _family: max_pixels)]


def greatest_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_prompts_seeds_and_counts_may_differ_within_a_batch(models: ModelStore) -> None:
    jobs = [job(models, "one", 1), job(models, "two", 2), job(models, "three", 3, num_images=4)]
    assert len({batch_key(each) for each in jobs}) == 1
    assert first_batch(jobs, 10**9) == [0, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"num_inference_steps": 5},
        {"guidance_scale": 6.5},
        {"scheduler": "heun"},
        {"sigma_schedule": "karras"},
        {"clip_skip": 1},
        {"checkpoint": "demo-xl"},
        {"hires": HiresPass(scale=2)},
    ],
)
def test_settings_that_a_batch_shares_must_be_equal(
    models: ModelStore, other: dict[str, object]
) -> None:
    assert batch_key(job(models)) != batch_key(job(models, "a fox", 1, **other))


def test_prompts_of_different_window_counts_are_not_batched(models: ModelStore) -> None:
    """Padding a short prompt with an empty window changed its picture."""
    short = job(models)
    longer = replace(short, pass_inputs=replace(short.pass_inputs, windows=2))
    assert first_batch([short, longer], 10**9) == [0]


def test_a_batch_is_limited_by_pixels_and_takes_the_oldest_jobs_first(models: ModelStore) -> None:
    jobs = [job(models, seed=seed) for seed in range(5)]
    assert first_batch(jobs, 3 * 64 * 64) == [0, 1, 2]
    assert first_batch(jobs, 0) == [0], "the oldest job runs whatever its size"


def test_a_hires_job_counts_the_pixels_of_its_larger_pass(models: ModelStore) -> None:
    assert pixels_of(job(models, hires=HiresPass(scale=2), num_images=2)) == 2 * 128 * 128


def test_an_upscale_is_not_batched(models: ModelStore) -> None:
    upscale = ResolvedUpscale(
        UpscaleRequest(images=(ImageRef(key="a"),), scale=2),
        UpscaleInput(Image.new("RGB", (8, 8)), None, None, None),
        None,
    )
    assert first_batch([upscale, upscale, job(models)], 10**9) == [0]
    assert first_batch([job(models), upscale, job(models)], 10**9) == [0, 2]


def test_a_scheduling_key_has_the_states_of_the_first_and_the_last_pass(
    models: ModelStore,
) -> None:
    plain, other = job(models), job(models, checkpoint="demo-xl")
    hires = job(models, "a fox <lora:demo-one:1>", hires=HiresPass(scale=2, prompt="a fox"))
    assert scheduling_key(plain, "normal").first_state == scheduling_key(hires, "normal").last_state
    assert (
        scheduling_key(plain, "normal").first_state != scheduling_key(hires, "normal").first_state
    )
    assert scheduling_key(plain, "normal").family != scheduling_key(other, "normal").family


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_pictures_are_the_same_alone_and_in_a_batch(
    models: ModelStore, renderer: Renderer, scheduler: str
) -> None:
    jobs = [job(models, p, seed, scheduler=scheduler) for seed, p in enumerate(PROMPTS)]
    results = through_engine(renderer, jobs, [ignore_progress] * len(jobs))
    for each, result in zip(jobs, results, strict=True):
        assert isinstance(result, RenderOutput)
        assert result.batch_jobs == len(jobs)
        [[alone]] = renderer.render([each], BatchProgress([ignore_progress]))
        assert greatest_difference(result.images[0], alone) <= 1


def test_each_job_gets_its_own_pictures(models: ModelStore, renderer: Renderer) -> None:
    jobs = [
        job(models, seed=1, num_images=2),
        job(models, seed=3),
        job(models, seed=4, num_images=3),
    ]
    pictures = renderer.render(jobs, BatchProgress([ignore_progress] * 3))
    assert [len(of_job) for of_job in pictures] == [2, 1, 3]
    [[alone]] = renderer.render([jobs[1]], BatchProgress([ignore_progress]))
    assert greatest_difference(pictures[1][0], alone) <= 1


def test_canceling_a_job_does_not_affect_the_others_of_its_batch(
    models: ModelStore, renderer: Renderer
) -> None:
    def canceled(stage: Stage, step: int, steps: int) -> None:
        if stage == "denoise" and step == 2:
            raise JobCanceled("second")

    jobs = [job(models, p, seed) for seed, p in enumerate(PROMPTS)]
    first, second, *_ = through_engine(
        renderer, jobs, [ignore_progress, canceled, ignore_progress, ignore_progress]
    )
    assert isinstance(second, JobCanceled)
    assert isinstance(first, RenderOutput)
    [[alone]] = renderer.render([jobs[0]], BatchProgress([ignore_progress]))
    assert greatest_difference(first.images[0], alone) <= 1


class OutOfMemoryAbove:
    """Wraps a renderer and runs out of memory for larger batches."""

    def __init__(self, renderer: Renderer, max_jobs: int) -> None:
        self._renderer, self._max_jobs = renderer, max_jobs
        self.batches: list[int] = []

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        self.batches.append(len(jobs))
        if len(jobs) > self._max_jobs:
            raise torch.OutOfMemoryError("out of memory")
        return self._renderer.render(jobs, progress)


def test_a_batch_that_runs_out_of_memory_is_halved(models: ModelStore, renderer: Renderer) -> None:
    small = OutOfMemoryAbove(renderer, max_jobs=1)
    jobs = [job(models, p, seed) for seed, p in enumerate(PROMPTS)]
    results = through_engine(small, jobs, [ignore_progress] * len(jobs))
    assert all(isinstance(result, RenderOutput) for result in results)
    assert small.batches == [4, 2, 1, 1, 2, 1, 1]
