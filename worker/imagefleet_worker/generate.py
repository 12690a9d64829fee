"""The life of a picture, from words to pixels."""

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from imagefleet_shared.requests import LATENT

from . import metrics
from .adapters.delta import Adapter
from .adapters.formats import load_adapter
from .adapters.lookup import WantedLora
from .adapters.merge import SwitchReport
from .adapters.originals import StateCorrupted
from .adapters.shelf import AdapterShelf
from .adapters.wanted import ScaledAdapter
from .images import from_vae_range
from .models.pipelines import PipelineCache, WarmPipeline
from .models.store import ModelFile
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

log = logging.getLogger(__name__)

T = TypeVar("T")


class Batch:
    """Jobs that run together: what they share, and what each picture has of its own."""

    def __init__(self, jobs: Sequence[ResolvedGenerate]) -> None:
        self._jobs = jobs
        self.shared = jobs[0]
        """Any of the jobs, for the settings that are equal in all of them."""
        self.seeds = [seed for job in jobs for seed in job.seeds]
        """One per picture."""

    def per_picture(self, value: Callable[[ResolvedGenerate], T]) -> list[T]:
        """Something of each picture's job."""
        return [value(job) for job in self._jobs for _ in job.seeds]

    def by_job(self, pictures: Sequence[Image.Image]) -> list[list[Image.Image]]:
        """Pictures of the batch, put to their jobs."""
        left = iter(pictures)
        return [list(islice(left, len(job.seeds))) for job in self._jobs]


class Studio:
    """Draws and enlarges with the models that it keeps warm; used on the engine's thread only."""

    def __init__(
        self, settings: WorkerSettings, pipelines: PipelineCache, enlarger: Enlarger
    ) -> None:
        self._settings = settings
        self._pipelines = pipelines
        self._enlarger = enlarger
        self._adapters: AdapterShelf[tuple[ModelFile, ModelFile]] = AdapterShelf(
            self._load_adapter,
            pipelines.device,
            host_bytes=int(settings.adapter_cache_gb * 1e9),
            device_bytes=int(settings.device_adapter_gb * 1e9),
        )

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
        warm = self._adapt(warm, batch.shared.loras)

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

    def _adapt(self, warm: WarmPipeline, loras: Sequence[WantedLora]) -> WarmPipeline:
        """The pipeline with exactly these LoRAs on; loaded anew if a check finds it damaged."""
        try:
            report = warm.merged.switch(self._scaled(warm, loras))
        except StateCorrupted as exc:
            log.error("checkpoint %s is loaded anew: %s", warm.file.name, exc)
            metrics.CORRUPTED.inc()
            self._pipelines.drop(warm)
            warm = self._pipelines.get(warm.file.name)
            report = warm.merged.switch(self._scaled(warm, loras))
        self._count(warm, report)
        return warm

    def _count(self, warm: WarmPipeline, report: SwitchReport) -> None:
        if report.rewritten or report.restored:
            metrics.SWITCHES.inc()
            metrics.REWRITTEN.inc(report.rewritten)
            metrics.RESTORED.inc(report.restored)
        stats, saved = self._adapters.stats, warm.merged.saved_bytes
        for place, of_place in (("host", stats.host), ("device", stats.device)):
            metrics.ADAPTER_HITS.labels(place).set(of_place.hits)
            metrics.ADAPTER_MISSES.labels(place).set(of_place.misses)
            metrics.ADAPTER_BYTES.labels(place).set(of_place.size_bytes)
        metrics.ORIGINALS_BYTES.labels("device").set(saved.device)
        metrics.ORIGINALS_BYTES.labels("pinned").set(saved.pinned)

    def _load_adapter(self, key: tuple[ModelFile, ModelFile]) -> Adapter:
        lora, checkpoint = key
        return load_adapter(lora.path, self._pipelines.get(checkpoint.name).naming).adapter

    def _scaled(self, warm: WarmPipeline, loras: Sequence[WantedLora]) -> list[ScaledAdapter]:
        return [
            ScaledAdapter(
                adapter=self._adapters.get((lora.file, warm.file)),
                unet_scale=lora.unet_scale,
                text_encoder_scale=lora.text_encoder_scale,
            )
            for lora in loras
        ]

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
