"""`status` and `cancel`."""

from typing import Annotated

import typer

from ..client import Client
from ..progress import follow
from .shell import AsJson, Preview, err, out, print_json


def status(
    job_id: str,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the job has ended.")] = False,
    preview: Preview = None,
    as_json: AsJson = False,
) -> None:
    """Say where a job stands."""
    with Client() as client:
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
    """Ask for a job's end."""
    with Client() as client:
        stood = client.job(job_id).cancel()
        out.print("had ended: " + stood if stood.ended else "canceled")
