"""Live progress of jobs in a terminal."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from imagefleet_producer.job import Job
from imagefleet_shared.status import Progress as JobProgress


def follow(
    console: Console,
    job: Job,
    label: str,
    timeout: float | None = None,
    preview: Path | None = None,
) -> None:
    """Show a job's progress until it has ended, however it ends; raises as `Job.events`.

    Args:
        console: to print on.
        job: to follow.
        label: name of the job in the progress bar.
        timeout: seconds until `JobTimeout`; None waits as long as it takes.
        preview: file for previews of the images; replaced atomically.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(label, total=None, stage="queued")
        for progress in job.events(timeout):
            bars.update(
                bar,
                total=_total(progress),
                completed=1 if progress.status.ended else progress.step,
                stage=_describe(progress),
            )
            if preview and not progress.status.ended:
                _save_preview(job, preview)


def _save_preview(job: Job, file: Path) -> None:
    image = job.preview()
    if image:
        temporary = file.with_name(f".{file.name}")
        image.save(temporary)
        temporary.replace(file)


def _total(progress: JobProgress) -> int | None:
    return 1 if progress.status.ended else progress.steps or None


def _describe(progress: JobProgress) -> str:
    if progress.status.ended:
        return progress.status.value
    steps = f" {progress.step}/{progress.steps}" if progress.steps else ""
    return f"{progress.stage}{steps}"
