"""`upscale`: enlarge a picture."""

from pathlib import Path
from typing import Annotated

import typer

from imagefleet_shared.parts import FaceRestore
from imagefleet_shared.requests import UpscaleRequest

from ..client import Client
from .output import finish
from .shell import AsJson, Format, Limit, NoWait, Out, PriorityOption


def upscale(
    image: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="The picture to enlarge.")
    ],
    scale: Annotated[float, typer.Option(help="By how much.")] = 2,
    upscaler: Annotated[str, typer.Option(help="lanczos or a model.")] = "lanczos",
    tile_size: Annotated[int, typer.Option(help="Pixels; less needs less memory.")] = 192,
    tile_overlap: Annotated[int, typer.Option(help="Pixels that tiles share.")] = 16,
    face_restorer: Annotated[
        str | None, typer.Option(help="Draw faces anew with this model.")
    ] = None,
    face_visibility: Annotated[float, typer.Option(help="Share of the new face.")] = 1,
    face_fidelity: Annotated[
        float | None, typer.Option(help="CodeFormer: 0 cleanest, 1 truest.")
    ] = None,
    faces_after_upscale: Annotated[bool, typer.Option(help="Enlarge first.")] = False,
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
            face_restore=None
            if face_restorer is None
            else FaceRestore(
                restorer=face_restorer,
                visibility=face_visibility,
                fidelity=face_fidelity,
                after_upscale=faces_after_upscale,
            ),
            output_format=output_format,
        )
        job = client.upscale(request, priority=priority, time_limit_s=time_limit)
        finish(job, folder, no_wait=no_wait, as_json=as_json)
