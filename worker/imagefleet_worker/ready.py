"""Jobs with nothing left open: what the engine draws and enlarges."""

from dataclasses import dataclass

from PIL import Image

from imagefleet_shared.parts import UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest

from .hires_size import HiresSize
from .inpaint.prepare import PreparedImage
from .looks import Look
from .models.store import ModelFile
from .passes import Steps
from .sampling.noise import Seeds


@dataclass(frozen=True)
class Refiner:
    """The checkpoint that takes over in the first pass."""

    look: Look
    switch_at: float
    """Share of the training timesteps passed."""


@dataclass(frozen=True)
class Hires:
    """The second pass, everything decided."""

    look: Look
    size: HiresSize
    upscaler: str
    steps: Steps


@dataclass(frozen=True)
class ResolvedGenerate:
    """A generate job, ready to be drawn."""

    request: GenerateRequest
    """The request with what was decided filled in; guidance, clip_skip, emphasis are read here."""
    look: Look
    width: int
    height: int
    seeds: Seeds
    steps: Steps
    start: PreparedImage | None
    """None: txt2img."""
    refiner: Refiner | None
    hires: Hires | None
    upscale: UpscalePass | None

    @property
    def looks(self) -> list[Look]:
        """Of every pass."""
        return [self.look, *(part.look for part in (self.refiner, self.hires) if part)]

    @property
    def files(self) -> list[ModelFile]:
        """Checkpoints and LoRAs of every pass; embeddings are read already."""
        loras = (lora.file for look in self.looks for lora in look.loras)
        return [*(look.checkpoint for look in self.looks), *loras]

    @property
    def upscalers(self) -> list[str]:
        """Names of those that it asks for; some are no models."""
        return [part.upscaler for part in (self.hires, self.upscale) if part]


@dataclass(frozen=True)
class ResolvedUpscale:
    """An upscale job, ready to be enlarged."""

    request: UpscaleRequest
    image: Image.Image
    """RGB."""
    parameters: str | None
    """The text that the picture carries of its making."""

    @property
    def files(self) -> list[ModelFile]:
        """None but the upscaler."""
        return []

    @property
    def upscalers(self) -> list[str]:
        """The name of its one."""
        return [self.request.upscaler]


ResolvedJob = ResolvedGenerate | ResolvedUpscale
