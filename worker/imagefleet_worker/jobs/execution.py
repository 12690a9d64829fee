"""A job's pictures: made by the engine, encoded beside it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from PIL import Image

from imagefleet_shared.status import Stage
from imagefleet_worker.engine.requests import RenderOutput
from imagefleet_worker.jobs.encode import Picture
from imagefleet_worker.progress import JobCallbacks, ProgressCallback
from imagefleet_worker.requests.resolved import ResolvedGenerate, ResolvedJob, UpscaleJob

Render = Callable[[ResolvedJob, ProgressCallback, JobCallbacks], RenderOutput]
Encode = Callable[[ResolvedJob, Sequence[Image.Image]], list[Picture]]

_PROGRESS_STEPS = 1000
"""Steps of an upscale of several pictures, shared out by their pixels."""


class JobReporter(JobCallbacks, Protocol):
    """Who hears of a job's steps; raises where the job must stop."""

    def report(self, stage: Stage, step: int, steps: int) -> None: ...


@dataclass(frozen=True)
class JobOutput:
    """A job's pictures as files, and where the time went."""

    pictures: list[Picture]
    waited_s: float
    """In the engine's queue."""
    stages_s: dict[str, float]
    batch_jobs: int
    """0 where no engine was asked."""
    rendered_s: float
    """When the engine was done, on the monotonic clock."""

    @classmethod
    def from_spool(cls, pictures: list[Picture]) -> "JobOutput":
        """Those that an earlier attempt made."""
        return cls(pictures, 0.0, {}, 0, monotonic())


def run_job(
    job: ResolvedGenerate | UpscaleJob,
    render: Render,
    callbacks: JobReporter,
    encode: Encode,
    on_rendered: Callable[[], None],
) -> JobOutput:
    """Have a job's pictures made; blocks until they are files.

    Args:
        job: what is to be made.
        render: has the engine draw or enlarge.
        listener: hears of the steps.
        encode: makes files of pictures.
        drawn: called once the engine is done with the job, before its last pictures are files.

    Raises:
        ImagefleetError: as the engine.
        JobCanceled, JobTimeout, LeaseLost, HandBack: whatever the listener raised.
    """
    if isinstance(job, UpscaleJob):
        return _enlarge(job, render, callbacks, encode, on_rendered)
    rendered = render(job, callbacks.report, callbacks)
    done_s = monotonic()
    on_rendered()
    callbacks.report("store", 0, len(rendered.images))
    pictures = encode(job, rendered.images)
    return JobOutput(pictures, rendered.waited_s, rendered.stages_s, rendered.batch_jobs, done_s)


def _enlarge(
    job: UpscaleJob,
    render: Render,
    callbacks: JobReporter,
    encode: Encode,
    on_rendered: Callable[[], None],
) -> JobOutput:
    """One picture after the other, so that other jobs get their turn.

    A picture is encoded while the engine is at work on the next one, so that memory holds two
    results at most; of the others their files, the sum of which `UploadChecker` limits.
    """
    rendered: list[RenderOutput] = []
    files: list[Future[list[Picture]]] = []
    pixels = [upload.width * upload.height for upload in job.inputs]
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
        for place in range(len(pixels)):
            part = job.decode(place)
            report = callbacks.report
            if len(pixels) > 1:
                report = _scaled_progress(report, sum(pixels[:place]), pixels[place], sum(pixels))
            one = render(part, report, callbacks)
            if files:
                files[-1].result()
            files.append(encoder.submit(encode, part, one.images))
            rendered.append(RenderOutput([], one.waited_s, one.stages_s, one.batch_jobs))
        done_s = monotonic()
        on_rendered()
        callbacks.report("store", 0, len(pixels))
    stages = {stage for each in rendered for stage in each.stages_s}
    return JobOutput(
        [picture for each in files for picture in each.result()],
        sum(each.waited_s for each in rendered),
        {stage: sum(each.stages_s.get(stage, 0) for each in rendered) for stage in stages},
        1,
        done_s,
    )


def _scaled_progress(
    report: ProgressCallback, before: int, own: int, total: int
) -> ProgressCallback:
    """Tells of one picture's enlargement as part of the whole job's."""

    def told(stage: Stage, step: int, steps: int) -> None:
        if stage == "upscale":
            done = before + (own * step / steps if steps else 0)
            report(stage, int(_PROGRESS_STEPS * done / total), _PROGRESS_STEPS)
        else:
            report(stage, step, steps)

    return told
