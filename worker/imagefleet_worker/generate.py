"""The life of a picture, from words to pixels."""

from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from imagefleet_shared.fields import LATENT

from .adapters.switcher import AdapterSwitcher
from .batching import Batch
from .images import from_vae_range
from .models.pipelines import PipelineCache, WarmPipeline
from .passes import (
    Guidance,
    decode,
    encode_image,
    enlarge_latents,
    image_to_image,
    noise,
    text_to_image,
)
from .prompts.encode import encode
from .resolve import Hires, ResolvedGenerate, ResolvedJob, ResolvedUpscale
from .schedulers import Solver, make_solver
from .settings import WorkerSettings
from .stages import Stages
from .upscale.enlarge import Enlarger


class Studio:
    """Draws and enlarges with the models that it keeps warm; used on the engine's thread only."""

    def __init__(
        self, settings: WorkerSettings, pipelines: PipelineCache, enlarger: Enlarger
    ) -> None:
        self._settings = settings
        self._pipelines = pipelines
        self._enlarger = enlarger
        self._adapters = AdapterSwitcher(settings, pipelines)

    @torch.no_grad()
    def render(self, jobs: Sequence[ResolvedJob], stages: Stages) -> list[list[Image.Image]]:
        """Pictures of each job of a batch, on the CPU.

        Raises:
            ImagefleetError: what a job asks for cannot be done.
            AllEnded: no job is to go on.
        """
        if isinstance(jobs[0], ResolvedUpscale):
            return [[self._enlarger.enlarge(jobs[0].image, jobs[0].request, stages)]]
        return self._generate(Batch(cast(Sequence[ResolvedGenerate], jobs)), stages)

    def _generate(self, batch: Batch, stages: Stages) -> list[list[Image.Image]]:
        stages.begin("load")
        warm = self._pipelines.get(batch.shared.checkpoint.name)

        stages.begin("adapters")
        warm = self._adapters.switch(warm, batch.shared.loras)

        stages.begin("text")
        guidance = self._guidance(warm, batch)

        latents = _first_pass(warm, batch, guidance, stages)
        if batch.shared.hires:
            latents = self._hires_pass(warm, batch, batch.shared.hires, guidance, latents, stages)

        stages.begin("decode", len(latents))
        pictures = from_vae_range(decode(warm, latents, stages))

        upscale = batch.shared.upscale
        if upscale:
            pictures = [self._enlarger.enlarge(p, upscale, stages) for p in pictures]
        # Weights that were moved onto the device step by step (VRAM preset low) leave it.
        warm.pipeline.maybe_free_model_hooks()
        return batch.by_job(pictures)

    def _guidance(self, warm: WarmPipeline, batch: Batch) -> Guidance:
        request = batch.shared.request
        texts = batch.per_picture(lambda job: job.prompt)
        inversions = batch.per_picture(lambda job: job.inversions)
        if request.guidance_scale > 1:
            texts = batch.per_picture(lambda job: job.request.negative_prompt) + texts
            inversions *= 2
        limit = self._settings.max_prompt_tokens
        conditioning = encode(warm, texts, request.clip_skip, limit, inversions)
        return Guidance(conditioning, request.guidance_scale)

    def _hires_pass(
        self,
        warm: WarmPipeline,
        batch: Batch,
        hires: Hires,
        guidance: Guidance,
        latents: Tensor,
        stages: Stages,
    ) -> Tensor:
        generators = _generators(batch.seeds)
        if hires.upscaler == LATENT:
            clean = enlarge_latents(latents, hires.width, hires.height)
        else:
            stages.begin("decode", len(latents))
            small = from_vae_range(decode(warm, latents, stages))
            large = [self._enlarger.fit(picture, hires, stages) for picture in small]
            clean = encode_image(warm, large, generators)
        # A1111 stretches the schedule so that exactly the steps asked for are executed.
        executed = hires.num_inference_steps
        scheduled = max(executed, int(executed / min(hires.strength, 0.999)))
        solver = _solver(warm, batch, scheduled, executed, generators)
        stages.begin("hires", len(solver.timesteps))
        unit = noise(warm, generators, hires.width, hires.height)
        return image_to_image(warm, solver, guidance, clean, unit, stages)


def _first_pass(warm: WarmPipeline, batch: Batch, guidance: Guidance, stages: Stages) -> Tensor:
    shared, generators = batch.shared, _generators(batch.seeds)
    scheduled = shared.request.num_inference_steps
    executed = int(scheduled * shared.start.strength) if shared.start else scheduled
    solver = _solver(warm, batch, scheduled, executed, generators)
    stages.begin("denoise", len(solver.timesteps))
    if shared.start is None:
        unit = noise(warm, generators, shared.width, shared.height)
        return text_to_image(warm, solver, guidance, unit, stages)
    images = [start.image for start in batch.per_picture(lambda job: job.start) if start]
    clean = encode_image(warm, images, generators)
    unit = noise(warm, generators, shared.width, shared.height)
    return image_to_image(warm, solver, guidance, clean, unit, stages)


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _solver(
    warm: WarmPipeline,
    batch: Batch,
    scheduled: int,
    executed: int,
    generators: Sequence[torch.Generator],
) -> Solver:
    request = batch.shared.request
    return make_solver(
        request.scheduler,
        request.sigma_schedule,
        warm.pipeline.scheduler.config,
        scheduled=scheduled,
        executed=executed,
        device=warm.device,
        generators=generators,
    )
