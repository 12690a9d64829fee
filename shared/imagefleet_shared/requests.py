"""The requests: frozen values, validated when they are constructed.

An invalid request raises `InvalidRequest` (or a more specific subclass) with the value given and
the values allowed. Sizes are in pixels, factors have no unit. A field left at None is decided by
the worker; the values it chose are in the result.
"""

from typing import Annotated, Literal, Self, cast

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import (
    MAX_SEED,
    PIXEL_MODES,
    Emphasis,
    ImageFormat,
    JobKind,
    ModelName,
    RequestPart,
    ResizeMode,
    Scheduler,
    Seed,
    Sigmas,
    SizePx,
    check_schedule,
    describe_error,
    split_label,
)
from imagefleet_shared.request_parts import (
    FaceRestore,
    HiresPass,
    ImageRef,
    Inpaint,
    LoRA,
    TextualInversion,
    UpscalePass,
)

_SWITCH_AT = 0.8


class GenerateRequest(RequestPart):
    """Images to generate: txt2img, or img2img if `image` is given; then hires, then upscale."""

    prompt: str = Field(max_length=20_000)
    """What to generate."""
    negative_prompt: str = Field(default="", max_length=20_000)
    """What to avoid; used only if guidance_scale is above 1."""
    checkpoint: ModelName | None = None
    """Name of a checkpoint in the model store; None: the worker's default."""
    width: SizePx | None = None
    """Pixels; None: the checkpoint's native size, or that of `image`, rounded down to 8."""
    height: SizePx | None = None
    """Pixels; None: as `width`."""
    num_inference_steps: int = Field(default=25, ge=1, le=150)
    """Steps *scheduled*: txt2img runs them all; img2img, as A1111, int(steps x strength) + 1."""
    guidance_scale: float = Field(default=7.0, ge=1, le=30)
    """Classifier-free guidance; 1 switches it off and halves the work."""
    scheduler: Scheduler = "euler"
    """The solver (A1111's "sampler", whose labels are accepted too: "DPM++ 2M Karras")."""
    sigma_schedule: Sigmas = "automatic"
    """How the noise levels are spaced (A1111's "schedule type"); automatic: the solver's own."""
    eta: float | None = Field(default=None, ge=0, le=1)
    """Share of fresh noise in each step of a solver that adds any; None: 1, but 0 for DDIM."""
    emphasis: Emphasis = "original"
    """How weights such as `(word:1.2)` are applied."""
    clip_skip: int | None = Field(default=None, ge=1, le=11)
    """SD 1.x: last layers of the text encoder to skip, in diffusers' count; None: as trained. SDXL
    ignores it, as in A1111."""
    seed: Seed | None = None
    """Seed of the first image; image i uses seed + i; None: derived from the job's id."""
    variation_seed: Seed | None = None
    """Seed of the noise that is mixed in, incremented like `seed`; None: derived from the job's
    id."""
    variation_strength: float = Field(default=0, ge=0, le=1)
    """Share of that noise: 0 none, 1 nothing else."""
    seed_resize_from: tuple[SizePx, SizePx] | None = None
    """Width and height of an earlier image of the same seed, whose composition is preserved."""
    rng: Literal["cpu", "gpu"] = "cpu"
    """Random number generator; `gpu` gives CUDA's numbers, A1111's default, on any device."""
    num_images: int = Field(default=1, ge=1, le=16)
    """Images generated in one batch."""
    loras: tuple[LoRA, ...] = Field(default=(), max_length=32)
    """LoRAs to merge, in addition to those in the prompt as `<lora:name:scale>`."""
    textual_inversions: tuple[TextualInversion, ...] = Field(default=(), max_length=32)
    """Embeddings under custom tokens; any embedding's name in a prompt triggers it anyway."""
    image: ImageRef | None = None
    """Initial image of img2img."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """img2img only: near 0 keeps the image, 1 ignores it; None: 0.75."""
    resize_mode: ResizeMode = "just_resize"
    """img2img only: how the image is fitted to width and height."""
    inpaint: Inpaint | None = None
    """img2img only: repaint only a masked region; None: the whole image."""
    refiner_checkpoint: ModelName | None = None
    """Checkpoint that takes over at `refiner_switch_at`, in the first pass; None: none does."""
    refiner_switch_at: float = Field(default=_SWITCH_AT, gt=0, lt=1)
    """Share of the steps after which the refiner takes over."""
    hires: HiresPass | None = None
    """A second, larger pass; None: off."""
    upscale: UpscalePass | None = None
    """Enlarge the image after the last pass; None: off."""
    face_restore: FaceRestore | None = None
    """Restore faces in the finished image; None: off."""
    output_format: ImageFormat = "png"
    """File format of the result."""

    @model_validator(mode="before")
    @classmethod
    def _split_label(cls, fields: object) -> object:
        return split_label(fields)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise InvalidRequest(
                f"give both width and height or neither; given {self.width} and {self.height}"
            )
        check_schedule(self.scheduler, self.sigma_schedule)
        if self.hires:
            check_schedule(
                self.hires.scheduler or self.scheduler,
                self.hires.sigma_schedule or self.sigma_schedule,
            )
        if self.image is None:
            for field in ("strength", "resize_mode", "inpaint"):
                value = getattr(self, field)
                if value != type(self).model_fields[field].default:
                    raise InvalidRequest(f"{field} {value!r} is for img2img: give an image with it")
        return self

    @model_validator(mode="after")
    def _check_unused_fields(self) -> Self:
        incremented = "variation_seed" if self.variation_strength else "seed"
        last = (getattr(self, incremented) or 0) + self.num_images - 1
        if last > MAX_SEED:
            raise InvalidRequest(
                f"{incremented} of the last of {self.num_images} pictures would be {last}; "
                f"at most {MAX_SEED} is allowed"
            )
        if self.variation_seed is not None and self.variation_strength == 0:
            raise InvalidRequest(
                f"variation_seed {self.variation_seed} needs a variation_strength above 0"
            )
        if self.refiner_checkpoint is None and self.refiner_switch_at != _SWITCH_AT:
            raise InvalidRequest(
                f"refiner_switch_at {self.refiner_switch_at:g} needs a refiner_checkpoint"
            )
        if self.face_restore and self.face_restore.after_upscale:
            if self.upscale is None:
                raise InvalidRequest("face_restore.after_upscale True needs an upscale")
            if self.inpaint:
                raise InvalidRequest(
                    "face_restore.after_upscale True would redraw faces that the mask keeps; "
                    "with inpaint only False is allowed"
                )
        return self


class UpscaleRequest(UpscalePass):
    """Images to enlarge, each by itself."""

    images: tuple[ImageRef, ...] = Field(min_length=1, max_length=64)
    """The images, already in the store; the result has one for each, in this order."""
    face_restore: FaceRestore | None = None
    """Restore faces; None: off."""
    output_format: ImageFormat = "png"
    """File format of the result."""

    @model_validator(mode="after")
    def _check_face_order(self) -> Self:
        unchanged = self.scale == 1 and set(self.upscalers) <= set(PIXEL_MODES)
        if unchanged and self.face_restore and self.face_restore.after_upscale:
            raise InvalidRequest(
                f"face_restore.after_upscale True needs an enlargement; scale 1 by "
                f"{self.upscaler!r} is none"
            )
        return self


def _kind_of(request: object) -> JobKind:
    is_generate = isinstance(request, GenerateRequest) or (
        isinstance(request, dict) and "prompt" in cast(dict[str, object], request)
    )
    return "generate" if is_generate else "upscale"


# A discriminated union: our own errors would stop pydantic from trying the other model.
Request = Annotated[
    Annotated[GenerateRequest, Tag("generate")] | Annotated[UpscaleRequest, Tag("upscale")],
    Discriminator(_kind_of),
]


def parse_request(kind: JobKind, json: str) -> Request:
    """Parse a request from a job's record.

    Raises:
        InvalidRequest: the text is not a request of that kind.
    """
    model = GenerateRequest if kind == "generate" else UpscaleRequest
    try:
        return model.model_validate_json(json)
    except ValidationError as exc:
        raise InvalidRequest(describe_error(model.__name__, exc)) from exc
