"""Live progress of jobs in a terminal."""

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from imagefleet_shared.status import Progress as JobProgress

from .job import Job


def follow(console: Console, job: Job, label: str, timeout: float | None = None) -> None:
    """Draw a job's progress until it has ended, however it ends; raises as `Job.events`."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
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
                stage=_words(progress),
            )


def _total(progress: JobProgress) -> int | None:
    return 1 if progress.status.ended else progress.steps or None


def _words(progress: JobProgress) -> str:
    if progress.status.ended:
        return progress.status.value
    steps = f" {progress.step}/{progress.steps}" if progress.steps else ""
    return f"{progress.stage}{steps}"
