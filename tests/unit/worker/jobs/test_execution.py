"""An upscale job's pictures: one after the other, their progress one course."""

import io
from collections.abc import Iterator, Sequence
from threading import Event

import pytest
from PIL import Image

from imagefleet_shared.errors import JobCanceled
from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.requests import UpscaleRequest
from imagefleet_shared.status import Stage
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.jobs.encode import Picture
from imagefleet_worker.jobs.execution import run_job
from imagefleet_worker.progress import BatchProgress, NullCallbacks
from imagefleet_worker.requests.resolved import (
    CheckedInput,
    ResolvedJob,
    ResolvedUpscale,
    UpscaleJob,
)

SIDES = [10, 20, 10]


class Enlarging:
    """A renderer of four tiles a picture."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        [job] = jobs
        assert isinstance(job, ResolvedUpscale)
        self.sizes.append(job.picture.image.size)
        progress.begin_stage("upscale")
        for tile in range(4):
            progress.set_step(tile + 1, 4)
        return [[job.picture.image]]


class Listener(NullCallbacks):
    preview_wanted = False

    def __init__(self) -> None:
        self.told: list[tuple[Stage, int, int]] = []

    def report(self, stage: Stage, step: int, steps: int) -> None:
        self.told.append((stage, step, steps))

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        raise AssertionError("an enlargement has no sketches")


@pytest.fixture
def renderer() -> Enlarging:
    return Enlarging()


@pytest.fixture
def engine(renderer: Enlarging) -> Iterator[Engine]:
    engine = Engine(lambda: renderer, lambda busy: None, max_batch_pixels=0)
    engine.start()
    yield engine
    engine.close()
    engine.join(30)


def job(sides: Sequence[int] = SIDES) -> UpscaleJob:
    """Pictures that are decoded when their turn comes."""
    uploads: list[CheckedInput] = []
    for side in sides:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side)).save(buffer, "PNG")
        uploads.append(CheckedInput(buffer.getvalue(), side, side, None))
    refs = tuple(ImageRef(key=str(place)) for place in range(len(sides)))
    return UpscaleJob(UpscaleRequest(images=refs, scale=1), tuple(uploads), None)


def encoded(job: ResolvedJob, images: Sequence[Image.Image]) -> list[Picture]:
    return [Picture(b"", "png", image.width, image.height, None) for image in images]


def undrawn() -> None:
    """Nobody waits to hear that the engine is done."""


def test_pictures_come_in_order(engine: Engine, renderer: Enlarging) -> None:
    made = run_job(job(), engine.render, Listener(), encoded, undrawn)
    assert renderer.sizes == [(side, side) for side in SIDES]
    assert [picture.width for picture in made.pictures] == SIDES
    assert made.batch_jobs == 1
    assert list(made.stages_s) == ["upscale"]


def test_progress_is_shared_out_by_pixels(engine: Engine) -> None:
    listener = Listener()
    run_job(job(), engine.render, listener, encoded, undrawn)
    assert listener.told.pop() == ("store", 0, 3)
    steps = [step for _, step, _ in listener.told]
    assert steps == sorted(steps)
    # 100, 400 and 100 of 600 pixels.
    assert steps[4] == 166
    assert steps[9] == 833
    assert steps[-1] == 1000
    assert {total for _, _, total in listener.told} == {1000}


def test_the_progress_of_one_picture_is_its_tiles(engine: Engine) -> None:
    listener = Listener()
    run_job(job([8]), engine.render, listener, encoded, undrawn)
    assert listener.told[-2:] == [("upscale", 4, 4), ("store", 0, 1)]


def test_a_picture_is_encoded_while_the_next_one_is_enlarged(
    engine: Engine, renderer: Enlarging
) -> None:
    second = Event()

    def waiting(job: ResolvedJob, images: Sequence[Image.Image]) -> list[Picture]:
        if len(renderer.sizes) == 1:
            assert second.wait(10), "the engine must not wait for the first one's file"
        return encoded(job, images)

    class Telling(Listener):
        def report(self, stage: Stage, step: int, steps: int) -> None:
            if len(renderer.sizes) == 2:
                second.set()

    assert len(run_job(job(), engine.render, Telling(), waiting, undrawn).pictures) == 3


def test_it_is_told_that_the_engine_is_done_once_after_the_last_picture(
    engine: Engine, renderer: Enlarging
) -> None:
    drawn_after: list[int] = []
    run_job(
        job(),
        engine.render,
        Listener(),
        encoded,
        lambda: drawn_after.append(len(renderer.sizes)),
    )
    assert drawn_after == [3]


def test_a_canceled_job_starts_no_further_picture(engine: Engine, renderer: Enlarging) -> None:
    class Canceling(Listener):
        def report(self, stage: Stage, step: int, steps: int) -> None:
            if len(renderer.sizes) == 2:
                raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        run_job(job(), engine.render, Canceling(), encoded, undrawn)
    assert len(renderer.sizes) == 2
