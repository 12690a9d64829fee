"""The diffusion renderer: from resolved jobs to images."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from imagefleet_shared.field_types import LATENT_MODES, LatentMode
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.batch import Batch
from imagefleet_worker.diffusion.denoiser import Denoiser, PreparedPass, RefinerSwitch
from imagefleet_worker.diffusion.latents import resize_latents
from imagefleet_worker.diffusion.lora_switcher import LoRASwitcher
from imagefleet_worker.diffusion.postprocess import Postprocessor
from imagefleet_worker.diffusion.vae import decode_latents, encode_images
from imagefleet_worker.imaging.convert import from_vae_range
from imagefleet_worker.inpaint.blend import LatentMask
from imagefleet_worker.inpaint.fill import fill_latents
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.conditioning import Conditioning, PlannedPrompts
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.requests.resolved import (
    PassInputs,
    RefinerPass,
    ResolvedGenerate,
    ResolvedHires,
    ResolvedJob,
    ResolvedUpscale,
)
from imagefleet_worker.sampling.noise import Noise
from imagefleet_worker.sampling.sample import sample
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.upscale.alpha import with_alpha

LATENT_CHANNELS = 4
"""The same for every family."""

PassInputsSelector = Callable[[ResolvedGenerate], PassInputs]


class DiffusionRenderer:
    """Renders batches with warm pipelines; used on the engine's thread only."""

    def __init__(
        self, settings: WorkerSettings, pipelines: PipelineCache, postprocessor: Postprocessor
    ) -> None:
        self._max_prompt_tokens = settings.max_prompt_tokens
        self._pipelines = pipelines
        self._postprocessor = postprocessor
        self._prompt_encoder = PromptEncoder(int(settings.text_cache_gb * 1e9))
        self._lora_switcher = LoRASwitcher(settings, pipelines, self._prompt_encoder.clear)

    @torch.no_grad()
    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        """Render a batch; returns the pictures of each job, on the CPU.

        Raises:
            ImagefleetError: the batch cannot be rendered.
            BatchCanceled: all of its jobs were canceled.
        """
        try:
            return self._pipelines.retry_after_eviction(
                lambda: self._render(jobs, progress), divisible=len(jobs) > 1
            )
        finally:
            self._pipelines.offload_idle()

    def _render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        if isinstance(job := jobs[0], ResolvedUpscale):
            image = job.picture.image
            restored = self._postprocessor.restore_faces([image], job.faces, progress)
            [upscaled] = self._postprocessor.enlarge(restored, job.request, job.faces, progress)
            return [[with_alpha(upscaled, job.picture.alpha, job.request)]]
        return self._generate(Batch(cast(Sequence[ResolvedGenerate], jobs)), progress)

    def _generate(self, batch: Batch, progress: BatchProgress) -> list[list[Image.Image]]:
        shared = batch.shared
        inputs, latents = shared.pass_inputs, self._first_pass(batch, progress)
        if shared.hires:
            inputs = shared.hires.pass_inputs
            latents = self._hires_pass(batch, shared.hires, latents, progress)
        decoded = self._decode(inputs, latents, progress)
        # As in A1111, before the unmasked parts are laid over: faces there must not change.
        pictures = batch.apply_overlays(
            self._postprocessor.restore_faces(decoded, shared.faces, progress)
        )
        return batch.by_job(
            self._postprocessor.enlarge(pictures, shared.upscale, shared.faces, progress)
        )

    def _first_pass(self, batch: Batch, progress: BatchProgress) -> Tensor:
        shared = batch.shared
        prepared = self._prepare_pass(
            batch, lambda job: job.pass_inputs, shared.step_plan, progress
        )
        progress.begin_stage("denoise", prepared.evaluations)
        clean = _initial_latents(batch, prepared.warm) if shared.initial_image else None
        masks = batch.per_image(lambda job: job.initial_image and job.initial_image.latent_mask)
        refiner_switch = (
            self._refiner_switch(batch, shared.refiner, progress) if shared.refiner else None
        )
        return _sample(batch, prepared, clean, masks, refiner_switch, progress)

    def _hires_pass(
        self, batch: Batch, hires: ResolvedHires, latents: Tensor, progress: BatchProgress
    ) -> Tensor:
        pictures = None
        if hires.upscaler not in LATENT_MODES:
            pictures = self._decode(batch.shared.pass_inputs, latents, progress)
            pictures = [self._enlarge(picture, hires, progress) for picture in pictures]
        prepared = self._prepare_pass(batch, _hires_inputs, hires.step_plan, progress)
        progress.begin_stage("hires", prepared.evaluations)
        if pictures:
            clean = encode_images(prepared.warm, pictures)
        else:
            size, mode = hires.size, cast(LatentMode, hires.upscaler)
            clean = size.crop_latents(
                resize_latents(latents, size.enlarged_width, size.enlarged_height, mode)
            )
        masks = batch.per_image(lambda job: job.initial_image and job.initial_image.hires_mask)
        return _sample(batch, prepared, clean, masks, None, progress)

    def _prepare_pass(
        self,
        batch: Batch,
        select_inputs: PassInputsSelector,
        step_plan: StepPlan,
        progress: BatchProgress,
    ) -> PreparedPass:
        """Load a pass's checkpoint, merge its LoRAs and encode its prompts."""
        shared, request = select_inputs(batch.shared), batch.shared.request
        progress.begin_stage("load")
        warm = self._pipelines.get(shared.checkpoint)
        progress.begin_stage("adapters")
        warm = self._lora_switcher.switch(warm, shared.loras)
        progress.begin_stage("text")
        conditioning = Conditioning(
            self._prompt_encoder,
            warm,
            [
                PlannedPrompts(inputs.prompt, inputs.negative, inputs.inversions)
                for inputs in batch.per_image(select_inputs)
            ],
            request.guidance_scale,
            shared.windows,
            TextSettings(request.clip_skip, self._max_prompt_tokens, request.emphasis),
        )
        return PreparedPass(warm, conditioning, step_plan)

    def _refiner_switch(
        self, batch: Batch, refiner: RefinerPass, progress: BatchProgress
    ) -> RefinerSwitch:
        plan = batch.shared.step_plan
        return RefinerSwitch(
            refiner.switch_at, lambda: self._prepare_pass(batch, _refiner_inputs, plan, progress)
        )

    def _enlarge(
        self, picture: Image.Image, hires: ResolvedHires, progress: BatchProgress
    ) -> Image.Image:
        size = hires.size
        enlarged = self._postprocessor.enlarger.fit(
            picture, hires.upscaler, size.enlarged_width, size.enlarged_height, progress
        )
        return size.crop_image(enlarged)

    def _decode(
        self, inputs: PassInputs, latents: Tensor, progress: BatchProgress
    ) -> list[Image.Image]:
        warm = self._pipelines.get(inputs.checkpoint)
        progress.begin_stage("decode", len(latents))
        pictures = from_vae_range(decode_latents(warm, latents, progress))
        self._pipelines.offload_idle()
        return pictures


def _initial_latents(batch: Batch, warm: WarmPipeline) -> Tensor:
    """Clean latents of the initial images, with masked areas filled as their fill modes say."""
    shared = batch.shared
    images = [image for image in batch.per_image(lambda job: job.initial_image) if image]
    # With resize_mode "latent" images are encoded at sizes of their own.
    encoded = {
        initial: resize_latents(
            encode_images(warm, [initial.image]), shared.width, shared.height, "latent"
        )
        for initial in dict.fromkeys(images)
    }
    noise = _noise(batch, shared.width, shared.height).first().to(warm.device)
    return torch.cat(
        [
            encoded[initial]
            if initial.latent_mask is None
            else fill_latents(
                encoded[initial], initial.latent_mask.to(warm.device), image_noise, initial.fill
            )
            for initial, image_noise in zip(images, noise.split(1), strict=True)
        ]
    )


def _sample(
    batch: Batch,
    prepared: PreparedPass,
    clean: Tensor | None,
    masks: Sequence[Tensor | None],
    refiner_switch: RefinerSwitch | None,
    progress: BatchProgress,
) -> Tensor:
    """Sample the latents of a pass, starting from `clean` ones if given, else from noise."""
    shared = batch.shared
    mask = None if clean is None else LatentMask.from_masks(masks, clean)
    denoise = Denoiser(prepared, shared.request.guidance_scale, mask, refiner_switch, progress)
    if clean is None:
        noise = _noise(batch, shared.width, shared.height)
    else:
        noise = _noise(batch, 8 * clean.shape[-1], 8 * clean.shape[-2])
    return denoise.restore_unmasked(
        sample(denoise, prepared.step_plan, prepared.schedule, noise, clean, prepared.warm.device)
    )


def _noise(batch: Batch, width: int, height: int) -> Noise:
    return Noise(batch.seeds, (LATENT_CHANNELS, height // 8, width // 8))


def _hires_inputs(job: ResolvedGenerate) -> PassInputs:
    assert job.hires is not None, "all jobs of a batch have the same passes"
    return job.hires.pass_inputs


def _refiner_inputs(job: ResolvedGenerate) -> PassInputs:
    assert job.refiner is not None, "all jobs of a batch have the same passes"
    return job.refiner.pass_inputs
