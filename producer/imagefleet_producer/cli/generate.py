"""`generate`: generate images from a prompt, or again from an image's infotext."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from imagefleet_producer.cli.cli_options import CliOptions, build_request
from imagefleet_producer.cli.output import finish, prepare
from imagefleet_producer.cli.shell import (
    AsJson,
    Format,
    Limit,
    NoWait,
    Out,
    Preview,
    PriorityOption,
    err,
    open_client,
)
from imagefleet_shared.field_types import Emphasis, MaskFill, ResizeMode
from imagefleet_shared.samplers import SigmaSchedule


# Long because it is a table: every parameter is a field of the request; fields of a part are
# prefixed with the part's name. None is "not given": the image's value or the default is used.
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to generate; default: as in --from.")
    ] = None,
    source: Annotated[
        Path | None,
        Option(
            "--from",
            exists=True,
            dir_okay=False,
            help="Generate this image again, from the text it carries; other options override it.",
        ),
    ] = None,
    negative_prompt: Annotated[str | None, Option("--negative", help="What to avoid.")] = None,
    checkpoint: Annotated[str | None, Option(help="Default: the worker's.")] = None,
    width: Annotated[int | None, Option(help="Pixels, multiple of 8.")] = None,
    height: Annotated[int | None, Option(help="Pixels, multiple of 8.")] = None,
    num_inference_steps: Annotated[int | None, Option("--steps", help="Default: 25.")] = None,
    guidance_scale: Annotated[
        float | None, Option("--guidance", help="Default: 7; 1 is off.")
    ] = None,
    scheduler: Annotated[
        str | None, Option(help='The solver, as "dpmpp_2m" or "DPM++ 2M Karras". Default: euler.')
    ] = None,
    sigma_schedule: Annotated[
        SigmaSchedule | None, Option("--sigmas", help="Spacing of noise levels.")
    ] = None,
    eta: Annotated[float | None, Option(help="Share of new noise in each step.")] = None,
    emphasis: Annotated[Emphasis | None, Option(help="How (word:1.2) is applied.")] = None,
    clip_skip: Annotated[int | None, Option(help="Layers to skip.")] = None,
    seed: Annotated[int | None, Option(help="Default: from the job's id.")] = None,
    variation_seed: Annotated[int | None, Option(help="Seed of the noise to mix in.")] = None,
    variation_strength: Annotated[float | None, Option(help="Share of that noise.")] = None,
    seed_resize_from: Annotated[
        str | None, Option(metavar="WxH", help="Preserve the composition of that size.")
    ] = None,
    rng: Annotated[
        Literal["cpu", "gpu"] | None, Option(help="Random number generator; A1111's default: gpu.")
    ] = None,
    num_images: Annotated[int, Option("--images", "-n", help="Images to generate.")] = 1,
    image: Annotated[
        Path | None,
        Option(exists=True, dir_okay=False, help="Start from this image (img2img)."),
    ] = None,
    strength: Annotated[float | None, Option(help="img2img: how much is redrawn.")] = None,
    resize_mode: Annotated[ResizeMode | None, Option(help="img2img: how it is fitted.")] = None,
    inpaint_mask_image: Annotated[
        Path | None,
        Option(
            "--inpaint-mask", exists=True, dir_okay=False, help="Repaint only where this is white."
        ),
    ] = None,
    inpaint_mask_blur: Annotated[int | None, Option("--mask-blur", help="Pixels.")] = None,
    inpaint_invert: Annotated[
        bool | None, Option("--mask-invert/--no-mask-invert", help="Repaint where it is black.")
    ] = None,
    inpaint_fill: Annotated[
        MaskFill | None, Option("--mask-fill", help="What is under the mask at the start.")
    ] = None,
    inpaint_only_masked: Annotated[
        bool | None,
        Option("--only-masked/--whole-picture", help="Generate the masked region alone."),
    ] = None,
    inpaint_padding: Annotated[
        int | None, Option("--mask-padding", help="Pixels around it, with --only-masked.")
    ] = None,
    refiner_checkpoint: Annotated[
        str | None, Option("--refiner", help="Checkpoint that takes over.")
    ] = None,
    refiner_switch_at: Annotated[float | None, Option(help="After this share of steps.")] = None,
    hires_scale: Annotated[
        float | None, Option("--hires", help="Second pass, larger by this factor; 0: none.")
    ] = None,
    hires_width: Annotated[int | None, Option(help="Its size, instead.")] = None,
    hires_height: Annotated[int | None, Option(help="Its size, instead.")] = None,
    hires_upscaler: Annotated[
        str | None, Option(help="latent, latent_bicubic, ..., lanczos or a model.")
    ] = None,
    hires_num_inference_steps: Annotated[
        int | None, Option("--hires-steps", help="Steps executed.")
    ] = None,
    hires_strength: Annotated[float | None, Option(help="Share of noise added.")] = None,
    hires_scheduler: Annotated[str | None, Option(help="Default: as the first pass.")] = None,
    hires_sigma_schedule: Annotated[
        SigmaSchedule | None, Option("--hires-sigmas", help="Default: as the first pass.")
    ] = None,
    hires_prompt: Annotated[str | None, Option(help="Default: as the first pass.")] = None,
    hires_negative_prompt: Annotated[
        str | None, Option("--hires-negative", help="Default: as the first pass.")
    ] = None,
    hires_checkpoint: Annotated[str | None, Option(help="Default: as the first pass.")] = None,
    upscale_scale: Annotated[
        float | None, Option("--upscale", help="Enlarge the result by this factor; 0: none.")
    ] = None,
    upscale_upscaler: Annotated[
        str | None, Option("--upscaler", help="lanczos or a model.")
    ] = None,
    face_restore_restorer: Annotated[
        str | None, Option("--face-restorer", help="Restore faces with this model.")
    ] = None,
    face_restore_visibility: Annotated[
        float | None, Option("--face-visibility", help="Share of the restored face; 0: none.")
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
    preview: Preview = None,
    folder: Out = Path("out"),
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Generate images from a prompt, or again from an image."""
    with open_client() as client:
        request, ignored = build_request(CliOptions.from_options(context.params), source, client)
        for label, value in ignored.items():
            err.print(f"not used: {label}: {value}", markup=False, highlight=False)
        prepare(folder, no_wait=no_wait, preview=preview)
        job = client.generate(request, priority=priority, time_limit_s=time_limit)
        finish(job, folder, no_wait=no_wait, as_json=as_json, preview=preview)
