"""What all commands have in common: consoles, exit codes, options."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from PIL import Image
from rich.console import Console

from imagefleet_shared.errors import (
    ImagefleetError,
    InvalidRequest,
    JobCanceled,
    JobNotFound,
    JobTimeout,
)
from imagefleet_shared.fields import ImageFormat, Priority

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


def exits(command: Callable[P, None]) -> Callable[P, None]:
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


def print_json(value: object) -> None:
    """One JSON object and nothing else, for scripts."""
    sys.stdout.write(json.dumps(value) + "\n")


def _picture_file(path: Path | None) -> Path | None:
    if path and Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise typer.BadParameter(f"{path.name!r} must end in .png, .jpg or .webp")
    return path


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to save the pictures in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")]
Limit = Annotated[
    float | None, typer.Option("--time-limit", help="Seconds within which the job must end.")
]
PriorityOption = Annotated[Priority, typer.Option(help="Jobs of a higher one are taken first.")]
Format = Annotated[ImageFormat, typer.Option("--format", help="File format.")]
Preview = Annotated[
    Path | None,
    typer.Option(callback=_picture_file, help="Keep the present look of the picture in this file."),
]
