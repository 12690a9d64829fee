"""The life of a picture, from words to pixels."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

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

    @torch.no_grad()
    def render(self, job: ResolvedJob, stages: Stages) -> list[Image.Image]:
        """Pictures for a job, on the CPU.

        Raises:
            ImagefleetError: what the job asks for cannot be done.
        """
        if isinstance(job, ResolvedUpscale):
            return [self._enlarger.enlarge(job.image, job.request, stages)]
        return self._generate(job, stages)

    def _generate(self, job: ResolvedGenerate, stages: Stages) -> list[Image.Image]:
        request = job.request

        stages.begin("load")
        warm = self._pipelines.get(job.checkpoint.name)

        stages.begin("text")
        guidance = self._guidance(warm, job)

        latents = _first_pass(warm, job, guidance, stages)
        if job.hires:
            latents = self._hires_pass(warm, job, job.hires, guidance, latents, stages)

        stages.begin("decode", len(latents))
        pictures = from_vae_range(decode(warm, latents, stages))

        if request.upscale:
            pictures = [self._enlarger.enlarge(p, request.upscale, stages) for p in pictures]
        # Weights that were moved onto the device step by step (VRAM preset low) leave it.
        warm.pipeline.maybe_free_model_hooks()
        return pictures

    def _guidance(self, warm: WarmPipeline, job: ResolvedGenerate) -> Guidance:
        request, count = job.request, len(job.seeds)
        texts = [request.prompt] * count
        if request.guidance_scale > 1:
            texts = [request.negative_prompt] * count + texts
        limit = self._settings.max_prompt_tokens
        return Guidance(encode(warm, texts, request.clip_skip, limit), request.guidance_scale)

    def _hires_pass(
        self,
        warm: WarmPipeline,
        job: ResolvedGenerate,
        hires: Hires,
        guidance: Guidance,
        latents: Tensor,
        stages: Stages,
    ) -> Tensor:
        generators = _generators(job.seeds)
        if hires.upscaler == "latent":
            clean = enlarge_latents(latents, hires.width, hires.height)
        else:
            stages.begin("decode", len(latents))
            small = from_vae_range(decode(warm, latents, stages))
            large = [self._enlarger.fit(picture, hires, stages) for picture in small]
            clean = encode_image(warm, large, generators)
        # A1111 stretches the schedule so that exactly the steps asked for are executed.
        executed = hires.num_inference_steps
        scheduled = max(executed, int(executed / min(hires.strength, 0.999)))
        solver = _solver(warm, job, scheduled, executed, generators)
        stages.begin("hires", len(solver.timesteps))
        unit = noise(warm, generators, hires.width, hires.height)
        return image_to_image(warm, solver, guidance, clean, unit, stages)


def _first_pass(
    warm: WarmPipeline, job: ResolvedGenerate, guidance: Guidance, stages: Stages
) -> Tensor:
    generators = _generators(job.seeds)
    scheduled = job.request.num_inference_steps
    executed = int(scheduled * job.start.strength) if job.start else scheduled
    solver = _solver(warm, job, scheduled, executed, generators)
    stages.begin("denoise", len(solver.timesteps))
    if job.start is None:
        unit = noise(warm, generators, job.width, job.height)
        return text_to_image(warm, solver, guidance, unit, stages)
    clean = encode_image(warm, [job.start.image] * len(generators), generators)
    unit = noise(warm, generators, job.width, job.height)
    return image_to_image(warm, solver, guidance, clean, unit, stages)


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _solver(
    warm: WarmPipeline,
    job: ResolvedGenerate,
    scheduled: int,
    executed: int,
    generators: Sequence[torch.Generator],
) -> Solver:
    return make_solver(
        job.request.scheduler,
        job.request.sigma_schedule,
        warm.pipeline.scheduler.config,
        scheduled=scheduled,
        executed=executed,
        device=warm.device,
        generators=generators,
    )
