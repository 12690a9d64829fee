"""The life of a picture, from words to pixels."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from imagefleet_shared.field_types import LATENT_MODES, LatentMode
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.batch import Batch
from imagefleet_worker.diffusion.denoiser import Artist, Denoiser, Handover
from imagefleet_worker.diffusion.latents import enlarge_latents
from imagefleet_worker.diffusion.lora_switcher import AdapterSwitcher
from imagefleet_worker.diffusion.postprocess import Finisher
from imagefleet_worker.diffusion.vae import decode, encode_images
from imagefleet_worker.imaging.convert import from_vae_range
from imagefleet_worker.inpaint.blend import LatentMask
from imagefleet_worker.inpaint.fill import fill_latents
from imagefleet_worker.progress import Stages
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.conditioning import Guide, PlannedPicture
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.requests.resolved import (
    Hires,
    Look,
    Refiner,
    ResolvedGenerate,
    ResolvedJob,
    ResolvedUpscale,
)
from imagefleet_worker.sampling.noise import Noise
from imagefleet_worker.sampling.sample import draw
from imagefleet_worker.sampling.step_plan import Steps
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.upscale.alpha import with_alpha

LATENT_CHANNELS = 4
"""Of every family."""

LookOf = Callable[[ResolvedGenerate], Look]


class Studio:
    """Draws and enlarges with the models that it keeps warm; used on the engine's thread only."""

    def __init__(
        self, settings: WorkerSettings, pipelines: PipelineCache, finisher: Finisher
    ) -> None:
        self._max_prompt_tokens = settings.max_prompt_tokens
        self._pipelines = pipelines
        self._finisher = finisher
        self._texts = PromptEncoder(int(settings.text_cache_gb * 1e9))
        self._adapters = AdapterSwitcher(settings, pipelines, self._texts.clear)

    @torch.no_grad()
    def render(self, jobs: Sequence[ResolvedJob], stages: Stages) -> list[list[Image.Image]]:
        """Pictures of each job of a batch, on the CPU.

        Raises:
            ImagefleetError: what a job asks for cannot be done.
            AllEnded: no job is to go on.
        """
        try:
            return self._pipelines.relieved(
                lambda: self._rendered(jobs, stages), divisible=len(jobs) > 1
            )
        finally:
            self._pipelines.rest()

    def _rendered(self, jobs: Sequence[ResolvedJob], stages: Stages) -> list[list[Image.Image]]:
        if isinstance(job := jobs[0], ResolvedUpscale):
            image = job.picture.image
            retouched = self._finisher.retouch([image], job.faces, stages)
            [colours] = self._finisher.enlarge(retouched, job.request, job.faces, stages)
            return [[with_alpha(colours, job.picture.alpha, job.request)]]
        return self._generate(Batch(cast(Sequence[ResolvedGenerate], jobs)), stages)

    def _generate(self, batch: Batch, stages: Stages) -> list[list[Image.Image]]:
        shared = batch.shared
        look, latents = shared.look, self._first_pass(batch, stages)
        if shared.hires:
            look = shared.hires.look
            latents = self._hires_pass(batch, shared.hires, latents, stages)
        drawn = self._decoded(look, latents, stages)
        # As A1111, before what masks keep is laid over: its faces are not to be touched.
        pictures = batch.finished(self._finisher.retouch(drawn, shared.faces, stages))
        return batch.by_job(self._finisher.enlarge(pictures, shared.upscale, shared.faces, stages))

    def _first_pass(self, batch: Batch, stages: Stages) -> Tensor:
        shared = batch.shared
        artist = self._artist(batch, lambda job: job.look, shared.steps, stages)
        stages.begin("denoise", artist.evaluations)
        clean = _start(batch, artist.warm) if shared.start else None
        masks = batch.per_picture(lambda job: job.start and job.start.latent_mask)
        handover = self._handover(batch, shared.refiner, stages) if shared.refiner else None
        return _draw(batch, artist, clean, masks, handover, stages)

    def _hires_pass(self, batch: Batch, hires: Hires, latents: Tensor, stages: Stages) -> Tensor:
        pictures = None
        if hires.upscaler not in LATENT_MODES:
            pictures = self._decoded(batch.shared.look, latents, stages)
            pictures = [self._enlarged(picture, hires, stages) for picture in pictures]
        artist = self._artist(batch, _hires_look, hires.steps, stages)
        stages.begin("hires", artist.evaluations)
        if pictures:
            clean = encode_images(artist.warm, pictures)
        else:
            size, mode = hires.size, cast(LatentMode, hires.upscaler)
            clean = size.crop_latents(
                enlarge_latents(latents, size.enlarged_width, size.enlarged_height, mode)
            )
        masks = batch.per_picture(lambda job: job.start and job.start.hires_mask)
        return _draw(batch, artist, clean, masks, None, stages)

    def _artist(self, batch: Batch, look_of: LookOf, steps: Steps, stages: Stages) -> Artist:
        """The checkpoint of a look, with its adapters on and its texts encoded."""
        shared, request = look_of(batch.shared), batch.shared.request
        stages.begin("load")
        warm = self._pipelines.get(shared.checkpoint)
        stages.begin("adapters")
        warm = self._adapters.switch(warm, shared.loras)
        stages.begin("text")
        looks = batch.per_picture(look_of)
        guide = Guide(
            self._texts,
            warm,
            [PlannedPicture(look.prompt, look.negative, look.inversions) for look in looks],
            request.guidance_scale,
            shared.windows,
            TextSettings(request.clip_skip, self._max_prompt_tokens, request.emphasis),
        )
        return Artist(warm, guide, steps)

    def _handover(self, batch: Batch, refiner: Refiner, stages: Stages) -> Handover:
        steps = batch.shared.steps
        return Handover(
            refiner.switch_at, lambda: self._artist(batch, _refiner_look, steps, stages)
        )

    def _enlarged(self, picture: Image.Image, hires: Hires, stages: Stages) -> Image.Image:
        size = hires.size
        large = self._finisher.enlarger.fit(
            picture, hires.upscaler, size.enlarged_width, size.enlarged_height, stages
        )
        return size.crop_picture(large)

    def _decoded(self, look: Look, latents: Tensor, stages: Stages) -> list[Image.Image]:
        warm = self._pipelines.get(look.checkpoint)
        stages.begin("decode", len(latents))
        pictures = from_vae_range(decode(warm, latents, stages))
        self._pipelines.rest()
        return pictures


def _start(batch: Batch, warm: WarmPipeline) -> Tensor:
    """Clean latents of the initial pictures, with what their fill modes put under masks."""
    shared = batch.shared
    starts = [start for start in batch.per_picture(lambda job: job.start) if start]
    # Those to be stretched as latents have sizes of their own.
    encoded = {
        start: enlarge_latents(
            encode_images(warm, [start.image]), shared.width, shared.height, "latent"
        )
        for start in dict.fromkeys(starts)
    }
    noise = _noise(batch, shared.width, shared.height).first().to(warm.device)
    return torch.cat(
        [
            encoded[start]
            if start.latent_mask is None
            else fill_latents(encoded[start], start.latent_mask.to(warm.device), own, start.fill)
            for start, own in zip(starts, noise.split(1), strict=True)
        ]
    )


def _draw(
    batch: Batch,
    artist: Artist,
    clean: Tensor | None,
    masks: Sequence[Tensor | None],
    handover: Handover | None,
    stages: Stages,
) -> Tensor:
    """Latents of a pass, over `clean` ones where there are any."""
    shared = batch.shared
    mask = None if clean is None else LatentMask.of(masks, clean)
    denoise = Denoiser(artist, shared.request.guidance_scale, mask, handover, stages)
    if clean is None:
        noise = _noise(batch, shared.width, shared.height)
    else:
        noise = _noise(batch, 8 * clean.shape[-1], 8 * clean.shape[-2])
    return denoise.finished(
        draw(denoise, artist.steps, artist.course, noise, clean, artist.warm.device)
    )


def _noise(batch: Batch, width: int, height: int) -> Noise:
    return Noise(batch.seeds, (LATENT_CHANNELS, height // 8, width // 8))


def _hires_look(job: ResolvedGenerate) -> Look:
    assert job.hires is not None, "jobs of a batch have the same passes"
    return job.hires.look


def _refiner_look(job: ResolvedGenerate) -> Look:
    assert job.refiner is not None, "jobs of a batch have the same passes"
    return job.refiner.look
