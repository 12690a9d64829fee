"""`imagefleet`: enqueue, watch and cancel jobs from a shell.

Exit codes: 0 done; 1 the fleet failed; 2 the request was refused; 3 no such job; 4 canceled;
5 not done in time.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from imagefleet_shared.errors import (
    ImagefleetError,
    InvalidRequest,
    JobCanceled,
    JobNotFound,
    JobTimeout,
)
from imagefleet_shared.presence import ModelInfo
from imagefleet_shared.requests import (
    LANCZOS,
    GenerateRequest,
    HiresPass,
    ImageFormat,
    ImageRef,
    Priority,
    SchedulerName,
    SigmaSchedule,
    UpscalePass,
    UpscaleRequest,
)
from imagefleet_shared.results import JobResult

from .client import Client
from .job import Job
from .progress import follow

app = typer.Typer(
    help="Enqueue Stable Diffusion jobs on an Imagefleet and fetch the pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
P = ParamSpec("P")

out = Console()
err = Console(stderr=True)

EXIT_CODES: list[tuple[type[ImagefleetError], int]] = [
    (InvalidRequest, 2),
    (JobNotFound, 3),
    (JobCanceled, 4),
    (JobTimeout, 5),
    (ImagefleetError, 1),
]

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to save the pictures in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")]
Limit = Annotated[
    float | None, typer.Option("--time-limit", help="Seconds within which the job must end.")
]
PriorityOption = Annotated[Priority, typer.Option(help="Jobs of a higher one are taken first.")]
Format = Annotated[ImageFormat, typer.Option("--format", help="File format.")]


def _exits(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our errors into a line on stderr and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ImagefleetError as exc:
            err.print(f"{type(exc).__name__}: {exc}", style="red", markup=False, highlight=False)
            code = next(code for kind, code in EXIT_CODES if isinstance(exc, kind))
            raise typer.Exit(code) from exc

    return run


@app.command()
@_exits
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    negative_prompt: Annotated[str, typer.Option("--negative", help="What to avoid.")] = "",
    checkpoint: Annotated[str | None, typer.Option(help="Default: the worker's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, multiple of 8.")] = None,
    steps: Annotated[int, typer.Option(help="Steps scheduled.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 is off.")] = 7.0,
    scheduler: Annotated[SchedulerName, typer.Option(help="The solver.")] = "euler",
    sigmas: Annotated[SigmaSchedule, typer.Option(help="Spacing of noise levels.")] = "normal",
    seed: Annotated[int | None, typer.Option(help="Default: from the job's id.")] = None,
    num_images: Annotated[int, typer.Option("--images", "-n", help="Pictures to draw.")] = 1,
    clip_skip: Annotated[int | None, typer.Option(help="Layers to leave out.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Start from this picture (img2img)."),
    ] = None,
    strength: Annotated[float | None, typer.Option(help="img2img: how much is redrawn.")] = None,
    hires: Annotated[float | None, typer.Option(help="Second pass, larger by this.")] = None,
    hires_upscaler: Annotated[str, typer.Option(help="latent, lanczos or a model.")] = "latent",
    hires_steps: Annotated[int | None, typer.Option(help="Steps executed.")] = None,
    hires_strength: Annotated[float, typer.Option(help="Share of noise put back.")] = 0.7,
    upscale: Annotated[float | None, typer.Option(help="Enlarge the result by this.")] = None,
    upscaler: Annotated[str, typer.Option(help="lanczos or a model.")] = "lanczos",
    output_format: Format = "png",
    priority: PriorityOption = "normal",
    time_limit: Limit = None,
    folder: Out = Path("out"),
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Draw pictures from a prompt."""
    with Client() as client:
        request = GenerateRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            checkpoint=checkpoint,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            scheduler=scheduler,
            sigma_schedule=sigmas,
            seed=seed,
            num_images=num_images,
            clip_skip=clip_skip,
            image=client.put_image(image) if image else None,
            strength=strength,
            hires=HiresPass(
                scale=hires,
                upscaler=hires_upscaler,
                num_inference_steps=hires_steps,
                strength=hires_strength,
            )
            if hires
            else None,
            upscale=UpscalePass(scale=upscale, upscaler=upscaler) if upscale else None,
            output_format=output_format,
        )
        job = client.generate(request, priority=priority, time_limit_s=time_limit)
        _finish(job, folder, no_wait, as_json)


@app.command()
@_exits
def upscale(
    image: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="The picture to enlarge.")
    ],
    scale: Annotated[float, typer.Option(help="By how much.")] = 2,
    upscaler: Annotated[str, typer.Option(help="lanczos or a model.")] = "lanczos",
    tile_size: Annotated[int, typer.Option(help="Pixels; less needs less memory.")] = 192,
    tile_overlap: Annotated[int, typer.Option(help="Pixels that tiles share.")] = 16,
    output_format: Format = "png",
    priority: PriorityOption = "normal",
    time_limit: Limit = None,
    folder: Out = Path("out"),
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Enlarge a picture."""
    with Client() as client:
        request = UpscaleRequest(
            image=client.put_image(image),
            scale=scale,
            upscaler=upscaler,
            tile_size=tile_size,
            tile_overlap=tile_overlap,
            output_format=output_format,
        )
        job = client.upscale(request, priority=priority, time_limit_s=time_limit)
        _finish(job, folder, no_wait, as_json)


@app.command()
@_exits
def status(
    job_id: str,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say where a job stands."""
    with Client() as client:
        job = client.job(job_id)
        if watch:
            follow(err, job, job_id)
        progress = job.progress()
        if as_json:
            _print_json({"job_id": job_id, **progress.model_dump(mode="json")})
        else:
            out.print(f"{progress.status} · {progress.stage} {progress.step}/{progress.steps}")
        if progress.status.ended:
            job.result()


@app.command()
@_exits
def cancel(job_id: str) -> None:
    """Ask for a job's end."""
    with Client() as client:
        stood = client.job(job_id).cancel()
        out.print("had ended: " + stood if stood.ended else "canceled")


@app.command()
@_exits
def models(as_json: AsJson = False) -> None:
    """List the models that the live workers have."""
    with Client() as client:
        workers = client.workers()
    if as_json:
        _print_json({"workers": [worker.model_dump(mode="json") for worker in workers]})
        return
    table = Table("kind", "name", "family", "form", "triggers", "size", "hash", "on")
    holders: dict[ModelInfo, list[str]] = {}
    for worker in workers:
        for model in worker.models:
            holders.setdefault(model, []).append(worker.name)
    for model in sorted(holders, key=lambda model: (model.kind, model.name)):
        size = f"{model.size_bytes / 1e6:.1f} MB"
        table.add_row(
            *(model.kind, model.name, model.family or "", ", ".join(model.forms)),
            *(", ".join(model.trigger_words), size, (model.sha256 or "")[:10]),
            str(len(holders[model])),
        )
    out.print(table if workers else "no worker is live")


@app.command()
@_exits
def demo(folder: Out = Path("out")) -> None:
    """Draw a picture with a hires pass, then enlarge it: what a fleet does, in a minute."""
    with Client() as client:
        drawing = client.generate(
            GenerateRequest(
                prompt="a red fox on a white background",
                num_inference_steps=20,
                seed=1,
                hires=HiresPass(scale=2, upscaler=LANCZOS, num_inference_steps=8, strength=0.1),
            )
        )
        follow(err, drawing, "txt2img + hires")
        drawn = drawing.result()
        _report(drawn, _save(drawing, folder))
        model = _demo_upscaler(client)
        request = UpscaleRequest(image=ImageRef(key=drawn.images[0].key), upscaler=model, scale=2)
        enlarging = client.upscale(request)
        follow(err, enlarging, f"upscale by {model}")
        _report(enlarging.result(), _save(enlarging, folder))


def _demo_upscaler(client: Client) -> str:
    upscalers = sorted(
        model.name
        for worker in client.workers()
        for model in worker.models
        if model.kind == "upscaler"
    )
    return upscalers[0] if upscalers else LANCZOS


def _finish(job: Job, folder: Path, no_wait: bool, as_json: bool) -> None:
    if no_wait:
        if as_json:
            _print_json({"job_id": job.id})
        else:
            out.print(job.id)
        return
    if not as_json:
        follow(err, job, job.id)
    result = job.result()
    files = _save(job, folder)
    if as_json:
        _print_json({**result.model_dump(mode="json"), "files": [str(file) for file in files]})
    else:
        _report(result, files)


def _save(job: Job, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for index, (content, image) in enumerate(zip(job.files(), job.result().images, strict=True)):
        files.append(folder / f"{job.id[:12]}-{index}.{image.format}")
        files[-1].write_bytes(content)
    return files


def _report(result: JobResult, files: list[Path]) -> None:
    for file, image in zip(files, result.images, strict=True):
        out.print(f"{file}  {image.width}x{image.height}", highlight=False)
        out.print(f"  stored at {image.url}", highlight=False, soft_wrap=True)
    timings = result.timings
    times = {"queue": timings.queue_s, "wait": timings.engine_wait_s, **timings.stages_s}
    words = [f"{stage} {seconds:.2f} s" for stage, seconds in times.items()]
    words.append(f"store {timings.store_s:.2f} s")
    out.print("  " + " · ".join(words), highlight=False, soft_wrap=True)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def main() -> None:
    """Entry point of the console script."""
    app()
