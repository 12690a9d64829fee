"""The diffusion passes: each takes a conditioning and gives latents `(B, 4, H/8, W/8)`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .conditions import added_conditions
from .models.pipelines import WarmPipeline
from .prompts.encode import Conditioning
from .schedulers import Solver
from .stages import Stages


@dataclass(frozen=True)
class Guidance:
    """What steers every step of a batch."""

    conditioning: Conditioning
    """Of the negatives, then the prompts, where `scale` > 1; else of the prompts alone."""
    scale: float
    """Classifier-free guidance; 1: off."""


def noise(
    warm: WarmPipeline, generators: Sequence[torch.Generator], width: int, height: int
) -> Tensor:
    """Unit noise for pictures of that size, each from its own generator.

    Drawn on the CPU in float32, so that a seed means the same picture on every device.
    """
    shape = (1, warm.pipeline.unet.config.in_channels, height // 8, width // 8)
    drawn = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.cat(drawn).to(warm.device, warm.dtype)


def text_to_image(
    warm: WarmPipeline, solver: Solver, guidance: Guidance, noise: Tensor, stages: Stages
) -> Tensor:
    """Draw from nothing but noise."""
    return _denoise(warm, solver, guidance, solver.initial(noise), stages)


def image_to_image(
    warm: WarmPipeline,
    solver: Solver,
    guidance: Guidance,
    clean: Tensor,
    noise: Tensor,
    stages: Stages,
) -> Tensor:
    """Draw over latents, the solver's first timestep deciding how much of them stays."""
    return _denoise(warm, solver, guidance, solver.noised(clean, noise), stages)


def enlarge_latents(latents: Tensor, width: int, height: int) -> Tensor:
    """Latents resized to a picture of that size: A1111's upscaler "Latent" (bilinear)."""
    return interpolate(latents, size=(height // 8, width // 8), mode="bilinear")


def _denoise(
    warm: WarmPipeline, solver: Solver, guidance: Guidance, latents: Tensor, stages: Stages
) -> Tensor:
    unet, guided = warm.pipeline.unet, guidance.scale > 1
    hidden = guidance.conditioning.hidden
    height, width = latents.shape[-2] * 8, latents.shape[-1] * 8
    negatives = len(latents) if guided else 0
    added = added_conditions(warm, guidance.conditioning.pooled, width, height, negatives)
    for timestep in solver.timesteps:
        inputs = solver.scaled(torch.cat([latents, latents]) if guided else latents, timestep)
        predicted = unet(
            inputs,
            timestep,
            encoder_hidden_states=hidden,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        if guided:
            negative, positive = predicted.chunk(2)
            predicted = negative + guidance.scale * (positive - negative)
        latents = solver.step(predicted, timestep, latents)
        stages.step()
    return latents
