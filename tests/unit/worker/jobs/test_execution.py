"""Running an upscale job: images one after the other, with one progress for all."""

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
from imagefleet_worker.jobs.encode import EncodedImage
from imagefleet_worker.jobs.execution import run_job
from imagefleet_worker.progress import BatchProgress, NullCallbacks
from imagefleet_worker.requests.resolved import (
    CheckedInput,
    ResolvedJob,
    ResolvedUpscale,
    UpscaleJob,
)

SIDES = [10, 20, 10]


class FakeUpscaler:
    """A renderer that reports four tiles per image."""

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


class RecordingCallbacks(NullCallbacks):
    preview_wanted = False

    def __init__(self) -> None:
        self.reported: list[tuple[Stage, int, int]] = []

    def report(self, stage: Stage, step: int, steps: int) -> None:
        self.reported.append((stage, step, steps))

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        raise AssertionError("an upscale has no previews")


@pytest.fixture
def renderer() -> FakeUpscaler:
    return FakeUpscaler()


@pytest.fixture
def engine(renderer: FakeUpscaler) -> Iterator[Engine]:
    engine = Engine(lambda: renderer, lambda busy: None, max_batch_pixels=0)
    engine.start()
    yield engine
    engine.close()
    engine.join(30)


def job(sides: Sequence[int] = SIDES) -> UpscaleJob:
    """A job whose images are decoded when their turn comes."""
    inputs: list[CheckedInput] = []
    for side in sides:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side)).save(buffer, "PNG")
        inputs.append(CheckedInput(buffer.getvalue(), side, side, None))
    refs = tuple(ImageRef(key=str(index)) for index in range(len(sides)))
    return UpscaleJob(UpscaleRequest(images=refs, scale=1), tuple(inputs), None)


def encode(job: ResolvedJob, images: Sequence[Image.Image]) -> list[EncodedImage]:
    return [EncodedImage(b"", "png", image.width, image.height, None) for image in images]


def ignore_rendered() -> None:
    """Does nothing when the engine is done."""


def test_images_are_returned_in_order(engine: Engine, renderer: FakeUpscaler) -> None:
    output = run_job(job(), engine.render, RecordingCallbacks(), encode, ignore_rendered)
    assert renderer.sizes == [(side, side) for side in SIDES]
    assert [image.width for image in output.images] == SIDES
    assert output.batch_jobs == 1
    assert list(output.stages_s) == ["upscale"]


def test_progress_is_scaled_by_pixels(engine: Engine) -> None:
    callbacks = RecordingCallbacks()
    run_job(job(), engine.render, callbacks, encode, ignore_rendered)
    assert callbacks.reported.pop() == ("store", 0, 3)
    steps = [step for _, step, _ in callbacks.reported]
    assert steps == sorted(steps)
    # 100, 400 and 100 of 600 pixels.
    assert steps[4] == 166
    assert steps[9] == 833
    assert steps[-1] == 1000
    assert {total for _, _, total in callbacks.reported} == {1000}


def test_the_progress_of_one_image_is_its_tiles(engine: Engine) -> None:
    callbacks = RecordingCallbacks()
    run_job(job([8]), engine.render, callbacks, encode, ignore_rendered)
    assert callbacks.reported[-2:] == [("upscale", 4, 4), ("store", 0, 1)]


def test_an_image_is_encoded_while_the_next_one_is_enlarged(
    engine: Engine, renderer: FakeUpscaler
) -> None:
    second = Event()

    def encode_late(job: ResolvedJob, images: Sequence[Image.Image]) -> list[EncodedImage]:
        if len(renderer.sizes) == 1:
            assert second.wait(10), "the engine must not wait for the first one's file"
        return encode(job, images)

    class Reporting(RecordingCallbacks):
        def report(self, stage: Stage, step: int, steps: int) -> None:
            if len(renderer.sizes) == 2:
                second.set()

    assert len(run_job(job(), engine.render, Reporting(), encode_late, ignore_rendered).images) == 3


def test_on_rendered_is_called_once_after_the_last_image(
    engine: Engine, renderer: FakeUpscaler
) -> None:
    rendered_after: list[int] = []
    run_job(
        job(),
        engine.render,
        RecordingCallbacks(),
        encode,
        lambda: rendered_after.append(len(renderer.sizes)),
    )
    assert rendered_after == [3]


def test_a_canceled_job_starts_no_further_image(engine: Engine, renderer: FakeUpscaler) -> None:
    class Canceling(RecordingCallbacks):
        def report(self, stage: Stage, step: int, steps: int) -> None:
            if len(renderer.sizes) == 2:
                raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        run_job(job(), engine.render, Canceling(), encode, ignore_rendered)
    assert len(renderer.sizes) == 2
