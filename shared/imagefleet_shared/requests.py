"""What an app may ask for: frozen values, checked when they are made.

A request that breaks a rule raises `InvalidRequest` (or the subclass that names the fault) with the
value given and the values allowed. Sizes are in pixels, factors have no unit. A field left at None
is decided by the worker; the values it chose are in the result.
"""

from typing import Annotated, Literal, Self, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    model_validator,
)

from .errors import InvalidRequest, UnknownScheduler

SchedulerName = Literal[
    "ddim",
    "dpm_2",
    "dpm_2_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lms",
    "unipc",
]
SigmaSchedule = Literal["normal", "karras", "exponential", "beta"]
NORMAL_SIGMAS_ONLY: tuple[SchedulerName, ...] = ("ddim", "euler_ancestral", "lcm")
"""Schedulers whose noise levels cannot be spaced otherwise."""
ImageFormat = Literal["png", "jpeg", "webp"]
Priority = Literal["high", "normal", "low"]
JobKind = Literal["generate", "upscale"]

LATENT, LANCZOS = "latent", "lanczos"
"""Upscaler names that need no model file."""


def _known_scheduler(name: object) -> object:
    if name not in get_args(SchedulerName):
        raise UnknownScheduler(str(name), get_args(SchedulerName))
    return name


def _model_name(name: object) -> object:
    """A name is looked up in the model store; what could be a path is refused before that."""
    if isinstance(name, str) and (
        not name.strip() or name[0] in "./~" or any(c in name for c in "/\\\0:") or len(name) > 255
    ):
        raise InvalidRequest(f"{name!r} is not a model name: give the file's name, without a path")
    return name


ModelName = Annotated[str, BeforeValidator(_model_name)]
SizePx = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]


class Frozen(BaseModel):
    """Base of every value in the contract: immutable; unknown fields, NaN and inf are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class _Request(Frozen):
    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_our_words(cls, value: object, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(value)
        except ValidationError as exc:
            raise InvalidRequest(_describe(cls.__name__, exc)) from None


def _describe(model: str, exc: ValidationError) -> str:
    faults: list[str] = []
    for error in exc.errors(include_url=False):
        field = ".".join(str(part) for part in error["loc"])
        given = "" if error["type"] == "missing" else f", given {error['input']!r}"
        faults.append(f"{field}: {error['msg']}{given}" if field else f"{error['msg']}{given}")
    return f"{model}: " + "; ".join(faults)


class ImageRef(_Request):
    """A picture that already lies in the object store; `Client.put_image` makes one."""

    key: str = Field(min_length=1, max_length=1024)
    """Key under the store's prefix, as `inputs/<sha256>.png`."""

    @model_validator(mode="after")
    def _inside_the_store(self) -> Self:
        if self.key.startswith("/") or "\0" in self.key or ".." in self.key.split("/"):
            raise InvalidRequest(f"key {self.key!r} leaves the store")
        return self


Scale = Annotated[float, Field(ge=-10, le=10)]


class LoRA(_Request):
    """A LoRA or LyCORIS file of the model store, merged into the checkpoint for this job."""

    name: ModelName
    """The file's name without suffix."""
    scale: Scale = 1
    """Factor for the UNet's part; negative turns it round."""
    text_encoder_scale: Scale | None = None
    """Factor for the text encoders' part; None: as `scale`."""


class TextualInversion(_Request):
    """An embedding of the model store, under a word of the prompt's choosing."""

    name: ModelName
    """The file's name without suffix."""
    token: str | None = Field(default=None, min_length=1, max_length=100)
    """The words in the prompts that stand for it; None: its name, which works without this too."""
    scale: Scale = 1
    """Factor on its vectors."""


class HiresPass(_Request):
    """A second pass at a larger size: upscale the first picture, then img2img over it."""

    scale: float | None = Field(default=None, gt=1, le=8)
    """Factor over the first pass; the size is rounded down to a multiple of 8."""
    width: SizePx | None = None
    """Target width in pixels; give either `scale` or both `width` and `height`."""
    height: SizePx | None = None
    """Target height in pixels."""
    upscaler: ModelName = LATENT
    """`latent` (bilinear in latent space), `lanczos`, or an upscaler model of the store."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=150)
    """Steps *executed* in this pass, as in A1111's hires fix; None: as many as the first pass."""
    strength: float = Field(default=0.7, gt=0, le=1)
    """Share of the noise put back: near 0 keeps the upscaled picture, 1 ignores it."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        by_size = (self.width is not None, self.height is not None)
        if any(by_size) != all(by_size) or all(by_size) == (self.scale is not None):
            raise InvalidRequest(
                "give either scale, or both width and height; given "
                f"scale={self.scale}, width={self.width}, height={self.height}"
            )
        return self


class UpscalePass(_Request):
    """Enlarge the finished picture, without diffusion."""

    upscaler: ModelName = LANCZOS
    """`lanczos`, or an upscaler model of the store."""
    scale: float = Field(default=2, gt=1, le=8)
    """Factor over the input; a model of another factor is applied and its output resized."""
    tile_size: int = Field(default=192, ge=16, le=2048)
    """Side of the square that the network sees at once, in input pixels; less needs less memory."""
    tile_overlap: int = Field(default=16, ge=0, le=512)
    """Input pixels that neighbouring tiles share; the seam is blended over them."""

    @model_validator(mode="after")
    def _enlarges(self) -> Self:
        if self.upscaler == LATENT:
            raise InvalidRequest(f"{LATENT!r} is for hires only; use {LANCZOS!r} or a model")
        if self.tile_overlap * 2 >= self.tile_size:
            raise InvalidRequest(
                f"tile_overlap must be less than half of tile_size {self.tile_size}, "
                f"given {self.tile_overlap}"
            )
        return self


class GenerateRequest(_Request):
    """A picture to draw: txt2img, or img2img when `image` is given; then hires, then upscale."""

    prompt: str = Field(max_length=20_000)
    """What to draw."""
    negative_prompt: str = Field(default="", max_length=20_000)
    """What to keep away from; used only where guidance_scale is above 1."""
    checkpoint: ModelName | None = None
    """Name of a checkpoint in the model store; None: the worker's default."""
    width: SizePx | None = None
    """Pixels; None: the checkpoint's native size, or that of `image`, rounded down to 8."""
    height: SizePx | None = None
    """Pixels; None: as `width`."""
    num_inference_steps: int = Field(default=25, ge=1, le=150)
    """Steps *scheduled*: txt2img runs them all, img2img int(steps x strength) of them."""
    guidance_scale: float = Field(default=7.0, ge=1, le=30)
    """Classifier-free guidance; 1 switches it off and halves the work."""
    scheduler: Annotated[SchedulerName, BeforeValidator(_known_scheduler)] = "euler"
    """The solver (A1111's "sampler")."""
    sigma_schedule: SigmaSchedule = "normal"
    """How the noise levels are spaced (A1111's "schedule type")."""
    clip_skip: int | None = Field(default=None, ge=1, le=11)
    """Last layers of the text encoder to leave out, diffusers' count; None: as it was trained."""
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    """Seed of the first picture, picture i takes seed + i; None: made from the job's id."""
    num_images: int = Field(default=1, ge=1, le=16)
    """Pictures drawn in one batch."""
    loras: tuple[LoRA, ...] = Field(default=(), max_length=32)
    """LoRAs to merge, beside those that the prompt names as `<lora:name:scale>`."""
    textual_inversions: tuple[TextualInversion, ...] = Field(default=(), max_length=32)
    """Embeddings under words of their own; any embedding's name in a prompt triggers it anyway."""
    image: ImageRef | None = None
    """Initial picture of img2img."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """img2img only: near 0 keeps the image, 1 ignores it; None: 0.75."""
    hires: HiresPass | None = None
    """A second, larger pass; None: off."""
    upscale: UpscalePass | None = None
    """Enlargement after the last pass; None: off."""
    output_format: ImageFormat = "png"
    """File format of the result."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise InvalidRequest(
                f"give both width and height or neither; given {self.width} and {self.height}"
            )
        if self.sigma_schedule != "normal" and self.scheduler in NORMAL_SIGMAS_ONLY:
            raise InvalidRequest(
                f"scheduler {self.scheduler!r} has sigma_schedule 'normal' only, "
                f"given {self.sigma_schedule!r}"
            )
        if self.image is None and self.strength is not None:
            raise InvalidRequest(f"strength {self.strength} is for img2img: give an image with it")
        if self.image and int(self.num_inference_steps * (self.strength or 0.75)) < 1:
            raise InvalidRequest(
                f"num_inference_steps {self.num_inference_steps} x strength {self.strength} runs "
                "no step; give more of either"
            )
        return self


class UpscaleRequest(UpscalePass):
    """A picture to enlarge."""

    image: ImageRef
    """The picture, already in the store."""
    output_format: ImageFormat = "png"
    """File format of the result."""


def _kind_of(request: object) -> JobKind:
    drawn = isinstance(request, GenerateRequest) or (
        isinstance(request, dict) and "prompt" in cast(dict[str, object], request)
    )
    return "generate" if drawn else "upscale"


# Told apart before they are read: a refusal of ours would end pydantic's trying of one by one.
Request = Annotated[
    Annotated[GenerateRequest, Tag("generate")] | Annotated[UpscaleRequest, Tag("upscale")],
    Discriminator(_kind_of),
]


def parse_request(kind: JobKind, json: str) -> Request:
    """Read a request back from a job's record.

    Raises:
        InvalidRequest: the text is not such a request.
    """
    model = GenerateRequest if kind == "generate" else UpscaleRequest
    try:
        return model.model_validate_json(json)
    except ValidationError as exc:
        raise InvalidRequest(_describe(model.__name__, exc)) from exc
