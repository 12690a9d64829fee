"""Rendering requests one after another with diffusers' own pipelines, as its users do."""

# Pipelines are typed as if none of their components could be None.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.utils import logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from imagefleet_producer import GenerateRequest
from imagefleet_worker.checkpoints.single_file import load_single_file


class PlainDiffusers:
    """A warm pipeline of one checkpoint with the folder's embeddings; LoRAs are loaded per job.

    Args:
        models: the model folder.
        checkpoint: its name.
        device: to run on.
        fuse: fuse a job's LoRAs into the weights, and unfuse them afterwards.
    """

    def __init__(self, models: Path, checkpoint: str, device: str, fuse: bool = False) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        # It warns about embeddings and shows progress bars while LoRAs are loaded.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._models = models
        self._fuse = fuse
        self._device = torch.device(device)
        dtype = torch.float32 if device == "cpu" else torch.float16
        path = models / f"checkpoints/{checkpoint}.safetensors"
        self._pipeline = load_single_file(path, self._device, dtype).pipeline
        config = self._pipeline.scheduler.config
        self._pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
        self._pipeline.set_progress_bar_config(disable=True)
        for embedding in (models / "embeddings").glob("*.safetensors"):
            self._pipeline.load_textual_inversion(embedding, token=embedding.stem)

    def __call__(self, requests: Sequence[GenerateRequest]) -> int:
        """Render all requests and discard the pictures; returns the number of batches."""
        for request in requests:
            self.render(request)
        return len(requests)

    def render(self, request: GenerateRequest) -> Image.Image:
        """Render one picture."""
        if not request.loras:
            return self._run_pipelines(request)
        for lora in request.loras:
            path = self._models / f"loras/{lora.name}.safetensors"
            self._pipeline.load_lora_weights(path, adapter_name=lora.name)
        names, scales = zip(*((lora.name, lora.scale) for lora in request.loras), strict=True)
        self._pipeline.set_adapters(list(names), list(scales))
        if self._fuse:
            self._pipeline.fuse_lora(components=["unet"], adapter_names=list(names))
        image = self._run_pipelines(request)
        if self._fuse:
            self._pipeline.unfuse_lora(components=["unet"])
        self._pipeline.unload_lora_weights()
        return image

    def _run_pipelines(self, request: GenerateRequest) -> Image.Image:
        guidance = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "guidance_scale": request.guidance_scale,
        }
        generator = torch.Generator().manual_seed(request.seed or 0)
        [image] = self._pipeline(
            **guidance,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            generator=generator,
        ).images
        hires = request.hires
        if hires is None:
            return image
        size = (round(image.width * (hires.scale or 1)), round(image.height * (hires.scale or 1)))
        second = StableDiffusionImg2ImgPipeline(
            **self._pipeline.components, requires_safety_checker=False
        )
        second.set_progress_bar_config(disable=True)
        [image] = second(
            **guidance,
            image=image.resize(size, Image.Resampling.LANCZOS),
            strength=hires.strength,
            # diffusers executes strength x steps of them.
            num_inference_steps=round((hires.num_inference_steps or 0) / hires.strength),
            generator=generator,
        ).images
        return image
