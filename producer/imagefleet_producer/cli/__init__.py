"""`imagefleet`: enqueue, watch and cancel jobs from a shell.

Exit codes: 0 done; 1 the fleet failed; 2 the request was refused, or a setting; 3 no such job;
4 canceled; 5 not done in time.
"""

import typer

from .demo import demo
from .generate import generate
from .jobs import cancel, status
from .models import models
from .shell import exits
from .upscale import upscale

app = typer.Typer(
    help="Enqueue Stable Diffusion jobs on an Imagefleet and fetch the pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(exits(generate))
app.command()(exits(upscale))
app.command()(exits(status))
app.command()(exits(cancel))
app.command()(exits(models))
app.command()(exits(demo))


def main() -> None:
    """Entry point of the console script."""
    app()
