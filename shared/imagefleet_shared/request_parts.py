"""The parts of a request: pictures, adapters, and the passes beside the first."""

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
    """A picture that already lies in the object store; `Client.put_image` makes one."""

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
    """Factor for the UNet's part; negative turns it round."""
    text_encoder_scale: Scale | None = None
    """Factor for the text encoders' part; None: as `scale`."""


class TextualInversion(RequestPart):
    """An embedding of the model store, under a word of the prompt's choosing."""

    name: ModelName
    """The file's name without suffix."""
    token: str | None = Field(default=None, min_length=1, max_length=100)
    """The words in the prompts that stand for it; None: its name, which works without this too."""
    scale: Scale = 1
    """Factor on its vectors."""


class HiresPass(RequestPart):
    """A second pass at a larger size: upscale the first picture, then img2img over it."""

    scale: float | None = Field(default=None, gt=1, le=8)
    """Factor over the first pass; the size is rounded down to a multiple of 8."""
    width: SizePx | None = None
    """Target width in pixels, instead of `scale`; with `height`, what exceeds it is cropped."""
    height: SizePx | None = None
    """Target height in pixels, instead of `scale`; one alone keeps the proportions."""
    upscaler: ModelName = LATENT
    """A `latent…` mode, `lanczos`, `nearest`, or an upscaler model of the store."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=150)
    """Steps *executed* in this pass, as in A1111's hires fix; None: as many as the first pass."""
    strength: float = Field(default=0.7, ge=0.01, le=1)
    """Share of the noise put back: near 0 keeps the upscaled picture, 1 ignores it."""
    scheduler: Scheduler | None = None
    """The solver of this pass; None: as the first pass, its sigma schedule too."""
    sigma_schedule: Sigmas | None = None
    """How this pass's noise levels are spaced; None: as the first pass."""
    prompt: str | None = Field(default=None, max_length=20_000)
    """What this pass draws; None: as the first pass. Its LoRA tags replace those of the prompt."""
    negative_prompt: str | None = Field(default=None, max_length=20_000)
    """What this pass keeps away from; None: as the first pass."""
    loras: tuple[LoRA, ...] | None = Field(default=None, max_length=32)
    """LoRAs of this pass beside those its prompt names; None: the request's."""
    checkpoint: ModelName | None = None
    """Checkpoint of this pass; None: as the first pass. Another one needs no `latent` upscaler."""

    @model_validator(mode="before")
    @classmethod
    def _split_label(cls, fields: object) -> object:
        return split_label(fields)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        check_target(self.scale, self.width, self.height)
        return self


class Inpaint(RequestPart):
    """Draw only where a mask is white; the rest of the initial picture stays."""

    mask_image: ImageRef
    """White is drawn anew, black stays, grey blends; resized with the picture."""
    mask_blur: int = Field(default=4, ge=0, le=64)
    """Radius in pixels over which the mask's edge is softened."""
    invert: bool = False
    """Draw where the mask is black instead."""
    fill: MaskFill = "original"
    """What lies under the mask at the start."""
    only_masked: bool = False
    """Draw the masked region alone, at the full size, and lay it into the picture."""
    padding: int = Field(default=32, ge=0, le=256)
    """Pixels round the masked region that are drawn along, where `only_masked`."""


class FaceRestore(RequestPart):
    """Draw the faces of the finished picture anew with a network made for that, as A1111 does."""

    restorer: ModelName
    """A GFPGAN, RestoreFormer or CodeFormer file of the model store."""
    visibility: float = Field(default=1, gt=0, le=1)
    """Share of the restored face in the result; the rest is the face as it was."""
    fidelity: float | None = Field(default=None, ge=0, le=1)
    """CodeFormer only, A1111's "weight": 0 the cleanest face, 1 the truest; None: 0.5."""
    after_upscale: bool = False
    """Where the picture is enlarged too: do that first; not with `inpaint`."""


class UpscalePass(RequestPart):
    """Enlarge the finished picture, without diffusion."""

    upscaler: ModelName = LANCZOS
    """`lanczos`, `nearest`, or an upscaler model of the store, which is applied at least once."""
    scale: float | None = Field(default=None, ge=1, le=8)
    """Factor over the input; a model of another factor is applied again, its output shrunk."""
    width: SidePx | None = None
    """Target width in pixels, instead of `scale`; with `height`, the picture covers both."""
    height: SidePx | None = None
    """Target height in pixels, instead of `scale`; one alone keeps the proportions."""
    crop: bool = True
    """With both sides given: what exceeds them is cut off, equally at both ends."""
    upscaler_2: ModelName | None = None
    """Another one, whose result is blended in; None: none."""
    upscaler_2_visibility: float = Field(default=_DEFAULT_VISIBILITY, ge=0, le=1)
    """Share of `upscaler_2` in the blend."""
    tile_size: int | None = Field(default=None, ge=16, le=2048, multiple_of=8)
    """Largest side of what a model sees at once, input pixels; the worker's memory may allow less,
    and decides alone where this is None."""
    tile_overlap: int = Field(default=_DEFAULT_OVERLAP, ge=0, le=128)
    """Input pixels that neighbouring tiles share at least; the seam is blended over them."""

    @property
    def upscalers(self) -> tuple[str, ...]:
        """Those asked for, by name."""
        return (self.upscaler, self.upscaler_2) if self.upscaler_2 else (self.upscaler,)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        check_target(self.scale, self.width, self.height)
        if not self.crop and (self.width is None or self.height is None):
            raise InvalidRequest("crop=False is for a target with both width and height")
        return self

    @model_validator(mode="after")
    def _known_means(self) -> Self:
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
