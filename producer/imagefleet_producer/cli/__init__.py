"""`imagefleet`: enqueue, watch and cancel jobs from a shell.

Exit codes: 0 success; 1 the fleet failed; 2 the request or a setting is invalid; 3 no such job;
4 canceled; 5 not done in time.
"""

import typer

from imagefleet_producer.cli.demo import demo
from imagefleet_producer.cli.generate import generate
from imagefleet_producer.cli.jobs import cancel, status
from imagefleet_producer.cli.models import models
from imagefleet_producer.cli.shell import with_exit_codes
from imagefleet_producer.cli.upscale import upscale

app = typer.Typer(
    help="Enqueue Stable Diffusion jobs on an Imagefleet and fetch the images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(with_exit_codes(generate))
app.command()(with_exit_codes(upscale))
app.command()(with_exit_codes(status))
app.command()(with_exit_codes(cancel))
app.command()(with_exit_codes(models))
app.command()(with_exit_codes(demo))


def main() -> None:
    """Entry point of the console script."""
    app()
