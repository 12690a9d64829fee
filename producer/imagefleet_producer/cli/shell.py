"""Shared by all commands: consoles, exit codes, options."""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from pydantic import ValidationError
from rich.console import Console

from imagefleet_producer.client import Client
from imagefleet_shared.errors import (
    ImagefleetError,
    InvalidRequest,
    JobCanceled,
    JobNotFound,
    JobTimeout,
)
from imagefleet_shared.field_types import ImageFormat, Priority, describe_error

P = ParamSpec("P")

# Rich treats a pipe as a terminal of 80 columns.
out = Console(width=None if sys.stdout.isatty() else 10_000)
err = Console(stderr=True)

EXIT_CODES: list[tuple[type[ImagefleetError], int]] = [
    (InvalidRequest, 2),
    (JobNotFound, 3),
    (JobCanceled, 4),
    (JobTimeout, 5),
    (ImagefleetError, 1),
]


def with_exit_codes(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our own errors and OSErrors into a line on stderr and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ImagefleetError as exc:
            code = next(code for kind, code in EXIT_CODES if isinstance(exc, kind))
            raise _exit_with(f"{type(exc).__name__}: {exc}", code) from exc
        except BrokenPipeError:  # The reader of our output has gone: typer exits silently.
            raise
        except OSError as exc:
            raise _exit_with(str(exc), 2) from exc

    return run


def open_client() -> Client:
    """A client with settings from the environment; exits with 2 if they are invalid."""
    try:
        return Client()
    except ValidationError as exc:
        raise _exit_with(describe_error("settings", exc), 2) from exc
    except (ImagefleetError, ValueError) as exc:  # ValueError: of boto3, on an endpoint
        raise _exit_with(f"settings: {exc}", 2) from exc


def _exit_with(message: str, code: int) -> typer.Exit:
    err.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(code)


def print_json(value: object) -> None:
    """Print one JSON object and nothing else, for scripts."""
    sys.stdout.write(json.dumps(value) + "\n")


def _check_preview_path(path: Path | None) -> Path | None:
    if path and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise typer.BadParameter(f"{path.name!r} must end in .png, .jpg or .webp")
    if path and not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        raise typer.BadParameter(f"{str(path.parent)!r} is not a writable folder")
    return path


Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", file_okay=False, writable=True, help="Folder to save the images in."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")]
Limit = Annotated[
    float | None, typer.Option("--time-limit", help="Seconds within which the job must end.")
]
PriorityOption = Annotated[Priority, typer.Option(help="Jobs of a higher priority run first.")]
Format = Annotated[ImageFormat, typer.Option("--format", help="File format.")]
Preview = Annotated[
    Path | None,
    typer.Option(
        callback=_check_preview_path,
        dir_okay=False,
        help="Save previews of the images to this file.",
    ),
]
