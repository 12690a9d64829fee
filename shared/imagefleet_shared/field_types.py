"""Types of request fields: base classes, names, sizes, and their validators."""

from typing import Annotated, Literal, Self, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from imagefleet_shared.errors import InvalidRequest, UnknownScheduler
from imagefleet_shared.samplers import (
    OWN_TIMESTEPS,
    SCHEDULER_LABELS,
    SIGMA_SCHEDULE_LABELS,
    SchedulerName,
    SigmaSchedule,
    find_scheduler,
    find_sigma_schedule,
)

ImageFormat = Literal["png", "jpeg", "webp"]
Priority = Literal["high", "normal", "low"]
JobKind = Literal["generate", "upscale"]

LatentMode = Literal[
    "latent",
    "latent_antialiased",
    "latent_bicubic",
    "latent_bicubic_antialiased",
    "latent_nearest",
    "latent_nearest_exact",
]
"""How latents are resized without decoding: bilinear unless the name says otherwise."""
LATENT, LANCZOS, NEAREST = "latent", "lanczos", "nearest"
LATENT_MODES: tuple[LatentMode, ...] = get_args(LatentMode)
PIXEL_MODES = (LANCZOS, NEAREST)
"""Upscaler names that need no model file: these for any image, latent modes for hires only."""
Emphasis = Literal["original", "no_norm", "ignore", "none"]
"""A1111's modes: multiply and restore the mean; multiply; parse the brackets but ignore the
weights; treat brackets as plain text."""
ResizeMode = Literal["just_resize", "crop_and_resize", "resize_and_fill", "latent"]
"""How an initial image of other proportions is fitted: stretched; cropped; padded by extending its
edges; stretched as latents."""
MaskFill = Literal["fill", "original", "latent_noise", "latent_nothing"]
"""What is under the mask at the start: blurred colours of the surroundings; the image; noise;
zeros."""


class Frozen(BaseModel):
    """Base of every shared value: immutable; unknown fields, NaN and inf are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class RequestPart(Frozen):
    """Base of requests and their parts: invalid values raise `InvalidRequest`."""

    @model_validator(mode="wrap")
    @classmethod
    def _raise_invalid_request(cls, value: object, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(value)
        except ValidationError as exc:
            raise InvalidRequest(describe_error(cls.__name__, exc)) from None


def describe_error(model: str, exc: ValidationError) -> str:
    """Pydantic's errors, field by field, with the values given."""
    problems: list[str] = []
    for error in exc.errors(include_url=False):
        field = ".".join(str(part) for part in error["loc"])
        given = "" if error["type"] == "missing" else f", given {error['input']!r}"
        problems.append(f"{field}: {error['msg']}{given}" if field else f"{error['msg']}{given}")
    return f"{model}: " + "; ".join(problems)


def _parse_scheduler(name: object) -> object:
    found = find_scheduler(name) if isinstance(name, str) else None
    if found is None:
        raise UnknownScheduler(str(name), tuple(SCHEDULER_LABELS))
    return found[0]


def _parse_sigma_schedule(name: object) -> object:
    found = find_sigma_schedule(name) if isinstance(name, str) else None
    if found is None:
        allowed = ", ".join(SIGMA_SCHEDULE_LABELS)
        raise InvalidRequest(f"unknown sigma_schedule {name!r}; allowed: {allowed}")
    return found


def split_label(fields: object) -> object:
    """Split a scheduler's older label, `DPM++ 2M Karras`, into its two fields."""
    values = cast(dict[str, object], fields) if isinstance(fields, dict) else {}
    label = values.get("scheduler")
    found = find_scheduler(label) if isinstance(label, str) else None
    if found is None or found[1] is None:
        return fields
    name, schedule = found
    other = values.get("sigma_schedule")
    if other is not None and _parse_sigma_schedule(other) not in (schedule, "automatic"):
        raise InvalidRequest(f"scheduler {label!r} and sigma_schedule {other!r} disagree")
    return {**values, "scheduler": name, "sigma_schedule": schedule}


def check_schedule(scheduler: SchedulerName, sigma_schedule: SigmaSchedule) -> None:
    """Check that the scheduler supports the sigma schedule; raises `InvalidRequest`."""
    if sigma_schedule != "automatic" and scheduler in OWN_TIMESTEPS:
        raise InvalidRequest(
            f"scheduler {scheduler!r} has sigma_schedule 'automatic' only, given {sigma_schedule!r}"
        )


def check_target(scale: float | None, width: int | None, height: int | None) -> None:
    """Check that a target is given either as a scale or as a size; raises `InvalidRequest`."""
    by_size = width is not None or height is not None
    if by_size == (scale is not None):
        raise InvalidRequest(
            "give either scale, or width, height or both; given "
            f"scale={scale}, width={width}, height={height}"
        )


def _check_model_name(name: object) -> object:
    """Refuse names that could be paths, before they are looked up in the model store."""
    if isinstance(name, str) and (
        not name.strip() or name[0] in "./~" or any(c in name for c in "/\\\0:") or len(name) > 255
    ):
        raise InvalidRequest(f"{name!r} is not a model name: give the file's name, without a path")
    return name


def _check_store_key(key: str) -> str:
    """Refuse keys that some store rejects or normalizes, before a worker reads them."""
    segments = key.split("/")
    if "\0" in key or {"", ".", ".."} & set(segments):
        raise InvalidRequest(f"key {key!r} leaves the store, or has an empty or '.' segment")
    if len(key.encode()) > 1024 or any(len(segment.encode()) > 255 for segment in segments):
        raise InvalidRequest(
            f"key {key!r} is too long; allowed are 1024 bytes, and 255 between slashes"
        )
    return key


ModelName = Annotated[str, BeforeValidator(_check_model_name)]
StoreKey = Annotated[str, AfterValidator(_check_store_key)]
SizePx = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]
SidePx = Annotated[int, Field(ge=1, le=65535)]
"""A side of an image that is not diffused; limits of file formats are in `image_files`."""
Scheduler = Annotated[SchedulerName, BeforeValidator(_parse_scheduler)]
Sigmas = Annotated[SigmaSchedule, BeforeValidator(_parse_sigma_schedule)]
MAX_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
