"""`status` and `cancel`."""

from typing import Annotated

import typer

from imagefleet_producer.cli.shell import AsJson, Preview, err, open_client, out, print_json
from imagefleet_producer.progress import follow
from imagefleet_shared.status import JobStatus


def status(
    job_id: str,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the job has ended.")] = False,
    preview: Preview = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's status and progress."""
    with open_client() as client:
        job = client.job(job_id)
        if watch or preview:
            follow(err, job, job_id, preview=preview)
        progress = job.progress()
        if as_json:
            print_json({"job_id": job_id, **progress.model_dump(mode="json")})
        else:
            out.print(f"{progress.status} · {progress.stage} {progress.step}/{progress.steps}")
        if progress.status.ended:
            job.result()


def cancel(job_id: str) -> None:
    """Cancel a job."""
    with open_client() as client:
        before = client.job(job_id).cancel()
        if before.ended:
            out.print(f"had ended: {before}")
        else:
            out.print("asked to end" if before is JobStatus.RUNNING else "canceled")
