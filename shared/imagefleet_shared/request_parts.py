"""The parts of a request: images, adapters, and the passes after the first."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import (
    LANCZOS,
    LATENT,
    LATENT_MODES,
    NEAREST,
    PIXEL_MODES,
    MaskFill,
    ModelName,
    RequestPart,
    Scheduler,
    SidePx,
    Sigmas,
    SizePx,
    StoreKey,
    check_target,
    split_label,
)


class ImageRef(RequestPart):
    """An image in the object store; `Client.put_image` uploads one."""

    key: StoreKey
    """Key under the store's prefix, as `inputs/<sha256>.png`."""


Scale = Annotated[float, Field(ge=-10, le=10)]
_DEFAULT_VISIBILITY = 0.5
_DEFAULT_OVERLAP = 16


class LoRA(RequestPart):
    """A LoRA or LyCORIS file of the model store, merged into the checkpoint for this job."""

    name: ModelName
    """The file's name without suffix, or the name that it was trained under."""
    scale: Scale = 1
    """Factor for the UNet's part; negative inverts it."""
    text_encoder_scale: Scale | None = None
    """Factor for the text encoders' part; None: as `scale`."""


class TextualInversion(RequestPart):
    """An embedding of the model store, under a token of your choice."""

    name: ModelName
    """The file's name without suffix."""
    token: str | None = Field(default=None, min_length=1, max_length=100)
    """The words in the prompts that trigger it; None: its name, which always triggers it."""
    scale: Scale = 1
    """Factor of its vectors."""


class HiresPass(RequestPart):
    """A second pass at a larger size: upscale the first pass's image, then img2img on it."""

    scale: float | None = Field(default=None, gt=1, le=8)
    """Factor over the first pass; the size is rounded down to a multiple of 8."""
    width: SizePx | None = None
    """Target width in pixels, instead of `scale`; with `height`, the excess is cropped."""
    height: SizePx | None = None
    """Target height in pixels, instead of `scale`; one alone keeps the proportions."""
    upscaler: ModelName = LATENT
    """A `latent…` mode, `lanczos`, `nearest`, or an upscaler model of the store."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=150)
    """Steps *executed* in this pass, as in A1111's hires fix; None: as many as the first pass."""
    strength: float = Field(default=0.7, ge=0.01, le=1)
    """Share of noise added: near 0 keeps the upscaled image, 1 ignores it."""
    scheduler: Scheduler | None = None
    """The solver of this pass; None: as the first pass, its sigma schedule too."""
    sigma_schedule: Sigmas | None = None
    """How this pass's noise levels are spaced; None: as the first pass."""
    prompt: str | None = Field(default=None, max_length=20_000)
    """Prompt of this pass; None: as the first pass. Its LoRA tags replace those of the prompt."""
    negative_prompt: str | None = Field(default=None, max_length=20_000)
    """Negative prompt of this pass; None: as the first pass."""
    loras: tuple[LoRA, ...] | None = Field(default=None, max_length=32)
    """LoRAs of this pass, in addition to those in its prompt; None: the request's."""
    checkpoint: ModelName | None = None
    """Checkpoint of this pass; None: as the first pass. Another one needs an upscaler that is not
    `latent…`."""

    @model_validator(mode="before")
    @classmethod
    def _split_label(cls, fields: object) -> object:
        return split_label(fields)

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        check_target(self.scale, self.width, self.height)
        return self


class Inpaint(RequestPart):
    """Repaint the masked region of the initial image; the rest is preserved."""

    mask_image: ImageRef
    """White areas are repainted, black ones are preserved, grey blends; resized with the image."""
    mask_blur: int = Field(default=4, ge=0, le=64)
    """Radius in pixels over which the mask's edge is softened."""
    invert: bool = False
    """Repaint black areas instead."""
    fill: MaskFill = "original"
    """What is under the mask at the start."""
    only_masked: bool = False
    """Generate the masked region alone, at the full size, and paste it into the image."""
    padding: int = Field(default=32, ge=0, le=256)
    """Pixels around the masked region that are generated with it, if `only_masked`."""


class FaceRestore(RequestPart):
    """Restore the faces of the finished image with a face restoration network, as A1111 does."""

    restorer: ModelName
    """A GFPGAN, RestoreFormer or CodeFormer file of the model store."""
    visibility: float = Field(default=1, gt=0, le=1)
    """Share of the restored face in the result; the rest is the original face."""
    fidelity: float | None = Field(default=None, ge=0, le=1)
    """CodeFormer only, A1111's "weight": 0 the best quality, 1 the most faithful; None: 0.5."""
    after_upscale: bool = False
    """Restore faces after an upscale instead of before; not with `inpaint`."""


class UpscalePass(RequestPart):
    """Enlarge the finished image, without diffusion."""

    upscaler: ModelName = LANCZOS
    """`lanczos`, `nearest`, or an upscaler model of the store, which is applied at least once."""
    scale: float | None = Field(default=None, ge=1, le=8)
    """Factor over the input; a model of a smaller factor is applied repeatedly, and a larger
    output is downscaled."""
    width: SidePx | None = None
    """Target width in pixels, instead of `scale`; with `height`, the image covers both."""
    height: SidePx | None = None
    """Target height in pixels, instead of `scale`; one alone keeps the proportions."""
    crop: bool = True
    """With both sides given: crop the excess, equally at both ends."""
    upscaler_2: ModelName | None = None
    """Another upscaler, whose result is blended in; None: none."""
    upscaler_2_visibility: float = Field(default=_DEFAULT_VISIBILITY, ge=0, le=1)
    """Share of `upscaler_2` in the blend."""
    tile_size: int | None = Field(default=None, ge=16, le=2048, multiple_of=8)
    """Largest side of a tile in input pixels; the worker's memory may allow less; None: as the
    memory allows."""
    tile_overlap: int = Field(default=_DEFAULT_OVERLAP, ge=0, le=128)
    """Least overlap of neighbouring tiles in input pixels; the seam is blended over it."""

    @property
    def upscalers(self) -> tuple[str, ...]:
        """Names of the requested upscalers."""
        return (self.upscaler, self.upscaler_2) if self.upscaler_2 else (self.upscaler,)

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        check_target(self.scale, self.width, self.height)
        if not self.crop and (self.width is None or self.height is None):
            raise InvalidRequest("crop=False is for a target with both width and height")
        return self

    @model_validator(mode="after")
    def _check_upscalers(self) -> Self:
        for field, name in (("upscaler", self.upscaler), ("upscaler_2", self.upscaler_2)):
            if name in LATENT_MODES:
                raise InvalidRequest(
                    f"{field} {name!r} is for hires only; "
                    f"allowed are {LANCZOS!r}, {NEAREST!r} or a model"
                )
        if self.upscaler_2 == self.upscaler:
            raise InvalidRequest(f"upscaler_2 is {self.upscaler!r}, as upscaler: give another one")
        visibility = self.upscaler_2_visibility
        if self.upscaler_2 is None and visibility != _DEFAULT_VISIBILITY:
            raise InvalidRequest(f"upscaler_2_visibility {visibility} needs an upscaler_2")
        if self.tile_size is not None and self.tile_overlap * 2 >= self.tile_size:
            raise InvalidRequest(
                f"tile_overlap must be less than half of tile_size {self.tile_size}, "
                f"given {self.tile_overlap}"
            )
        tiled = self.tile_size is not None or self.tile_overlap != _DEFAULT_OVERLAP
        if tiled and set(self.upscalers) <= set(PIXEL_MODES):
            raise InvalidRequest(
                f"tile_size {self.tile_size} and tile_overlap {self.tile_overlap} are for models; "
                f"upscaler {self.upscaler!r} is none"
            )
        return self
