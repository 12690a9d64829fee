"""Jobs with nothing left open: what the engine draws and enlarges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.prompts.plan import Part
from imagefleet_worker.sampling.seeds import Seeds
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.upscale.decode_input import UpscaleInput, decode_upscale_input

if TYPE_CHECKING:
    # They import torch, which what delivers jobs does without.
    from imagefleet_worker.faces.resolved import ResolvedFaces
    from imagefleet_worker.imaging.hires_size import HiresSize
    from imagefleet_worker.inpaint.prepare import PreparedImage
    from imagefleet_worker.prompts.triggers import PromptEmbedding


@dataclass(frozen=True)
class RequestedLoRA:
    """A LoRA file and how much of it is wanted."""

    file: ModelFile
    unet_scale: float
    text_encoder_scale: float


@dataclass(frozen=True)
class PassInputs:
    """What a pass draws with, everything found and checked."""

    checkpoint: ModelFile
    loras: tuple[RequestedLoRA, ...]
    """By name."""
    prompt: tuple[Part, ...]
    negative: Part
    inversions: tuple[PromptEmbedding, ...]
    """That stand in a text."""
    windows: int
    """Windows of 75 tokens that the longest of its texts takes."""


@dataclass(frozen=True)
class RefinerPass:
    """The checkpoint that takes over in the first pass."""

    pass_inputs: PassInputs
    switch_at: float
    """Share of the training timesteps passed."""


@dataclass(frozen=True)
class ResolvedHires:
    """The second pass, everything decided."""

    pass_inputs: PassInputs
    size: HiresSize
    upscaler: str
    step_plan: StepPlan


@dataclass(frozen=True)
class ResolvedGenerate:
    """A generate job, ready to be drawn."""

    request: GenerateRequest
    """The request with what was decided filled in; guidance, clip_skip, emphasis are read here."""
    pass_inputs: PassInputs
    width: int
    height: int
    seeds: Seeds
    step_plan: StepPlan
    initial_image: PreparedImage | None
    """None: txt2img."""
    refiner: RefinerPass | None
    hires: ResolvedHires | None
    upscale: UpscalePass | None
    faces: ResolvedFaces | None

    @property
    def all_pass_inputs(self) -> list[PassInputs]:
        """Of every pass."""
        return [
            self.pass_inputs,
            *(part.pass_inputs for part in (self.refiner, self.hires) if part),
        ]

    @property
    def files(self) -> list[ModelFile]:
        """Checkpoints and LoRAs of every pass, and what faces need; embeddings are read already."""
        loras = (lora.file for inputs in self.all_pass_inputs for lora in inputs.loras)
        faces = self.faces.files if self.faces else ()
        return [*(inputs.checkpoint for inputs in self.all_pass_inputs), *loras, *faces]

    @property
    def upscalers(self) -> list[str]:
        """Names of those that it asks for; some are no models."""
        hires = [self.hires.upscaler] if self.hires else []
        return [*hires, *(self.upscale.upscalers if self.upscale else ())]


@dataclass(frozen=True)
class ResolvedUpscale:
    """A picture of an upscale job, ready to be enlarged."""

    request: UpscaleRequest
    picture: UpscaleInput
    faces: ResolvedFaces | None


@dataclass(frozen=True)
class CheckedInput:
    """A picture of an upscale job, as it came and was found good."""

    content: bytes
    width: int
    height: int
    decoded: UpscaleInput | None
    """None: too much to be kept decoded until its turn."""


@dataclass(frozen=True)
class UpscaleJob:
    """An upscale job whose pictures were all checked; they are enlarged one after the other."""

    request: UpscaleRequest
    inputs: tuple[CheckedInput, ...]
    faces: ResolvedFaces | None

    def decode(self, index: int) -> ResolvedUpscale:
        """The picture at that place, decoded."""
        upload = self.inputs[index]
        pixels = upload.width * upload.height
        picture = upload.decoded or decode_upscale_input(upload.content, pixels)
        return ResolvedUpscale(self.request, picture, self.faces)

    @property
    def files(self) -> list[ModelFile]:
        """What faces need."""
        return list(self.faces.files) if self.faces else []

    @property
    def upscalers(self) -> list[str]:
        """Names of those that it asks for; some are no models."""
        return list(self.request.upscalers)


ResolvedJob = ResolvedGenerate | ResolvedUpscale
"""What the engine takes."""
