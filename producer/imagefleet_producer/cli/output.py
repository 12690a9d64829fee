"""What a command outputs: image files, and a report or JSON."""

from pathlib import Path

from imagefleet_producer.cli.shell import err, out, print_json
from imagefleet_producer.job import Job
from imagefleet_producer.progress import follow
from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.results import JobResult


def prepare(folder: Path, *, no_wait: bool = False, preview: Path | None = None) -> None:
    """Check that a job's output can be saved, before the job is enqueued.

    Raises:
        InvalidRequest: a preview of a job that is not waited for.
        OSError: the folder cannot be created.
    """
    if no_wait and preview:
        raise InvalidRequest("--preview needs the job to be waited for: give it without --no-wait")
    if not no_wait:
        folder.mkdir(parents=True, exist_ok=True)


def finish(
    job: Job, folder: Path, *, no_wait: bool, as_json: bool, preview: Path | None = None
) -> None:
    """Wait for a job, save its images and report them; or only print its id."""
    if no_wait:
        if as_json:
            print_json({"job_id": job.id})
        else:
            out.print(job.id)
        return
    if preview or not as_json:
        follow(err, job, job.id, preview=preview)
    result = job.result()
    files = save(job, folder)
    if as_json:
        print_json({**result.model_dump(mode="json"), "files": [str(file) for file in files]})
    else:
        report(result, files)


def save(job: Job, folder: Path) -> list[Path]:
    """Save the images of a finished job in an existing folder, and return the files."""
    files: list[Path] = []
    for index, (content, image) in enumerate(zip(job.files(), job.result().images, strict=True)):
        files.append(folder / f"{job.id[:12]}-{index}.{image.format}")
        files[-1].write_bytes(content)
    return files


def report(result: JobResult, files: list[Path]) -> None:
    """Print where the images are, and where the time went."""
    for file, image in zip(files, result.images, strict=True):
        _print_line(f"{file}  {image.width}x{image.height}")
        _print_line(f"  stored at {image.url}")
    timings = result.timings
    times = {"queue": timings.queue_s, "wait": timings.engine_wait_s, **timings.stages_s}
    parts = [f"{stage} {seconds:.2f} s" for stage, seconds in times.items()]
    parts.append(f"store {timings.store_s:.2f} s")
    _print_line("  " + " · ".join(parts))


def _print_line(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
