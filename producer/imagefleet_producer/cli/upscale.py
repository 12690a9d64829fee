"""`upscale`: enlarge images."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from imagefleet_producer.cli.output import finish, prepare
from imagefleet_producer.cli.shell import (
    AsJson,
    Format,
    Limit,
    NoWait,
    Out,
    PriorityOption,
    open_client,
)
from imagefleet_shared.requests import UpscaleRequest


def upscale(
    context: typer.Context,
    images: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="The images to enlarge.")
    ],
    scale: Annotated[float | None, Option(help="Factor; default: 2.")] = None,
    width: Annotated[int | None, Option(help="To this size instead, pixels.")] = None,
    height: Annotated[int | None, Option(help="Likewise; one alone keeps proportions.")] = None,
    crop: Annotated[
        bool | None, Option("--crop/--no-crop", help="Crop what exceeds width and height.")
    ] = None,
    upscaler: Annotated[str | None, Option(help="lanczos, nearest or a model.")] = None,
    upscaler_2: Annotated[str | None, Option(help="Another one, blended in.")] = None,
    upscaler_2_visibility: Annotated[
        float | None, Option("--visibility", help="Share of the other one.")
    ] = None,
    tile_size: Annotated[int | None, Option(help="Pixels; smaller tiles need less memory.")] = None,
    tile_overlap: Annotated[int | None, Option(help="Pixels that tiles share.")] = None,
    face_restore_restorer: Annotated[
        str | None, Option("--face-restorer", help="Restore faces with this model.")
    ] = None,
    face_restore_visibility: Annotated[
        float | None, Option("--face-visibility", help="Share of the restored face.")
    ] = None,
    face_restore_fidelity: Annotated[
        float | None, Option("--face-fidelity", help="CodeFormer: 0 best quality, 1 most faithful.")
    ] = None,
    face_restore_after_upscale: Annotated[
        bool | None, Option("--faces-after-upscale/--faces-before-upscale", help="Order.")
    ] = None,
    output_format: Format = "png",
    priority: PriorityOption = "normal",
    time_limit: Limit = None,
    folder: Out = Path("out"),
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Enlarge images."""
    fields: dict[str, object] = {
        name: value
        for name, value in context.params.items()
        if name in UpscaleRequest.model_fields and value is not None
    }
    if not {"scale", "width", "height"} & fields.keys():
        fields["scale"] = 2
    faces = {
        name.removeprefix("face_restore_"): value
        for name, value in context.params.items()
        if name.startswith("face_restore_") and value is not None
    }
    if faces:
        fields["face_restore"] = faces
    with open_client() as client:
        fields["images"] = [client.put_image(image) for image in images]
        request = UpscaleRequest.model_validate(fields)
        prepare(folder, no_wait=no_wait)
        job = client.upscale(request, priority=priority, time_limit_s=time_limit)
        finish(job, folder, no_wait=no_wait, as_json=as_json)
