"""Fully resolved jobs: what the engine renders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.prompts.plan import PromptPart
from imagefleet_worker.sampling.seeds import Seeds
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.upscale.decode_input import UpscaleInput, decode_upscale_input

if TYPE_CHECKING:
    # These import torch, which the delivery process does without.
    from imagefleet_worker.faces.resolved import ResolvedFaces
    from imagefleet_worker.imaging.hires_size import HiresSize
    from imagefleet_worker.inpaint.prepare import PreparedImage
    from imagefleet_worker.prompts.triggers import PromptEmbedding


@dataclass(frozen=True)
class RequestedLoRA:
    """A LoRA file and the requested scales."""

    file: ModelFile
    unet_scale: float
    text_encoder_scale: float


@dataclass(frozen=True)
class PassInputs:
    """The inputs of a pass: checkpoint, adapters and parsed prompts."""

    checkpoint: ModelFile
    loras: tuple[RequestedLoRA, ...]
    """Sorted by name."""
    prompt: tuple[PromptPart, ...]
    negative: PromptPart
    inversions: tuple[PromptEmbedding, ...]
    """Those that the texts trigger."""
    windows: int
    """Windows of 75 tokens that the longest text takes."""


@dataclass(frozen=True)
class RefinerPass:
    """The refiner, which takes over during the first pass."""

    pass_inputs: PassInputs
    switch_at: float
    """Fraction of the training timesteps elapsed at the switch."""


@dataclass(frozen=True)
class ResolvedHires:
    """A resolved hires pass."""

    pass_inputs: PassInputs
    size: HiresSize
    upscaler: str
    step_plan: StepPlan


@dataclass(frozen=True)
class ResolvedGenerate:
    """A generate job, ready to render."""

    request: GenerateRequest
    """The request with defaults filled in; guidance_scale, clip_skip and emphasis are read here."""
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
        """Inputs of every pass, in order."""
        return [
            self.pass_inputs,
            *(part.pass_inputs for part in (self.refiner, self.hires) if part),
        ]

    @property
    def files(self) -> list[ModelFile]:
        """Model files that rendering needs: checkpoints, LoRAs and face models.

        Embeddings are not included: resolving has already loaded them.
        """
        loras = (lora.file for inputs in self.all_pass_inputs for lora in inputs.loras)
        faces = self.faces.files if self.faces else ()
        return [*(inputs.checkpoint for inputs in self.all_pass_inputs), *loras, *faces]

    @property
    def upscalers(self) -> list[str]:
        """Requested upscalers by name; some are resampling modes, not models."""
        hires = [self.hires.upscaler] if self.hires else []
        return [*hires, *(self.upscale.upscalers if self.upscale else ())]


@dataclass(frozen=True)
class ResolvedUpscale:
    """One picture of an upscale job, ready to render."""

    request: UpscaleRequest
    picture: UpscaleInput
    faces: ResolvedFaces | None


@dataclass(frozen=True)
class CheckedInput:
    """A validated input of an upscale job."""

    content: bytes
    """The file as uploaded."""
    width: int
    height: int
    decoded: UpscaleInput | None
    """The decoded input; None if it is decoded again later, to limit memory."""


@dataclass(frozen=True)
class UpscaleJob:
    """An upscale job with all of its inputs validated; they are rendered one after the other."""

    request: UpscaleRequest
    inputs: tuple[CheckedInput, ...]
    faces: ResolvedFaces | None

    def decode(self, index: int) -> ResolvedUpscale:
        """The input at an index, decoded and ready to render."""
        checked = self.inputs[index]
        pixels = checked.width * checked.height
        picture = checked.decoded or decode_upscale_input(checked.content, pixels)
        return ResolvedUpscale(self.request, picture, self.faces)

    @property
    def files(self) -> list[ModelFile]:
        """Face models."""
        return list(self.faces.files) if self.faces else []

    @property
    def upscalers(self) -> list[str]:
        """Requested upscalers by name; some are resampling modes, not models."""
        return list(self.request.upscalers)


ResolvedJob = ResolvedGenerate | ResolvedUpscale
"""A job as the engine renders it."""
