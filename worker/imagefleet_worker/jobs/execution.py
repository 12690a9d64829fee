"""Runs a job: images are rendered by the engine and encoded on other threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from PIL import Image

from imagefleet_shared.status import Stage
from imagefleet_worker.engine.engine_request import RenderOutput
from imagefleet_worker.jobs.encode import EncodedImage
from imagefleet_worker.progress import JobCallbacks, ProgressCallback
from imagefleet_worker.requests.resolved import ResolvedGenerate, ResolvedJob, UpscaleJob

Render = Callable[[ResolvedJob, ProgressCallback, JobCallbacks], RenderOutput]
Encode = Callable[[ResolvedJob, Sequence[Image.Image]], list[EncodedImage]]

_PROGRESS_STEPS = 1000
"""Steps of an upscale of several images; each image has a share by its pixels."""


class JobReporter(JobCallbacks, Protocol):
    """Callbacks of a job that also receive its progress."""

    def report(self, stage: Stage, step: int, steps: int) -> None:
        """Receive the job's progress; raises if the job must stop."""
        ...


@dataclass(frozen=True)
class JobOutput:
    """A job's image files, and where the time went."""

    images: list[EncodedImage]
    waited_s: float
    """In the engine's queue."""
    stages_s: dict[str, float]
    batch_jobs: int
    """0 if nothing was rendered."""
    rendered_s: float
    """When rendering was done, on the monotonic clock."""

    @classmethod
    def from_spool(cls, images: list[EncodedImage]) -> "JobOutput":
        """The output of an earlier attempt, loaded from the spool."""
        return cls(images, 0.0, {}, 0, monotonic())


def run_job(
    job: ResolvedGenerate | UpscaleJob,
    render: Render,
    callbacks: JobReporter,
    encode: Encode,
    on_rendered: Callable[[], None],
) -> JobOutput:
    """Render and encode a job's images; blocks until they are encoded.

    Args:
        job: to run.
        render: renders on the engine.
        callbacks: receive progress and previews, and may cancel the job.
        encode: encodes images as files.
        on_rendered: called once the engine is done with the job, before its last images are
            encoded.

    Raises:
        ImagefleetError: as `Engine.render`.
        JobCanceled, JobTimeout, LeaseLost, Requeue: whatever the callbacks raised.
    """
    if isinstance(job, UpscaleJob):
        return _enlarge(job, render, callbacks, encode, on_rendered)
    rendered = render(job, callbacks.report, callbacks)
    done_s = monotonic()
    on_rendered()
    callbacks.report("store", 0, len(rendered.images))
    images = encode(job, rendered.images)
    return JobOutput(images, rendered.waited_s, rendered.stages_s, rendered.batch_jobs, done_s)


def _enlarge(
    job: UpscaleJob,
    render: Render,
    callbacks: JobReporter,
    encode: Encode,
    on_rendered: Callable[[], None],
) -> JobOutput:
    """Enlarge one image after the other, so that other jobs get their turn.

    An image is encoded while the engine renders the next one, so that memory holds at most two
    decoded results; the others are files, whose total size is limited when the job is resolved.
    """
    rendered: list[RenderOutput] = []
    encoded: list[Future[list[EncodedImage]]] = []
    pixels = [checked.width * checked.height for checked in job.inputs]
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
        for index in range(len(pixels)):
            part = job.decode(index)
            report = callbacks.report
            if len(pixels) > 1:
                report = _scaled_progress(report, sum(pixels[:index]), pixels[index], sum(pixels))
            output = render(part, report, callbacks)
            if encoded:
                encoded[-1].result()
            encoded.append(encoder.submit(encode, part, output.images))
            rendered.append(RenderOutput([], output.waited_s, output.stages_s, output.batch_jobs))
        done_s = monotonic()
        on_rendered()
        callbacks.report("store", 0, len(pixels))
    stages = {stage for output in rendered for stage in output.stages_s}
    return JobOutput(
        [image for future in encoded for image in future.result()],
        sum(output.waited_s for output in rendered),
        {stage: sum(output.stages_s.get(stage, 0) for output in rendered) for stage in stages},
        1,
        done_s,
    )


def _scaled_progress(
    report: ProgressCallback, before: int, own: int, total: int
) -> ProgressCallback:
    """Reports one image's upscale as part of the whole job's; arguments in pixels."""

    def report_scaled(stage: Stage, step: int, steps: int) -> None:
        if stage == "upscale":
            done = before + (own * step / steps if steps else 0)
            report(stage, int(_PROGRESS_STEPS * done / total), _PROGRESS_STEPS)
        else:
            report(stage, step, steps)

    return report_scaled
