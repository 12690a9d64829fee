"""Encoding and decoding with the VAE, in half precision unless that overflows.

Some VAEs overflow in half precision, SDXL's first release among them, and decode to NaN. Others of
the same architecture do not, and nothing in a file tells them apart. So every VAE starts in the
worker's dtype, and one that overflows is upcast to float32, its weights staying rounded, for as
long as its checkpoint stays warm.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, WorkerFailure
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.imaging.convert import to_vae_range
from imagefleet_worker.metrics import VAE_UPCASTS
from imagefleet_worker.progress import BatchProgress

logger = logging.getLogger(__name__)


def encode_images(warm: WarmPipeline, images: Sequence[Image.Image]) -> Tensor:
    """Encode RGB images of one size to scaled latents `(B, 4, H/8, W/8)`, float32, on the device.

    Takes the mode of the VAE's posterior, not a sample: its spread is far below what a denoising
    step changes, and so an image encodes to the same latents in every batch, without using any of
    a seed's random numbers. Encodes one image at a time, for the reason given at `decode_latents`.

    Raises:
        CorruptFile: the VAE produces NaN or infinity even in float32.
    """
    vae = warm.pipeline.vae

    def encode(pixels: Tensor) -> Tensor:
        return vae.encode(pixels.to(warm.device, vae.dtype)).latent_dist.mode().float()

    latents = [_upcast_on_overflow(warm, encode, to_vae_range(image)) for image in images]
    return torch.cat(latents) * vae.config.scaling_factor


def decode_latents(warm: WarmPipeline, latents: Tensor, progress: BatchProgress) -> Tensor:
    """Decode scaled latents `(B, 4, H/8, W/8)` of any float dtype to images `(B, 3, H, W)`.

    Returns float32 on the CPU, in about [-1, 1]. Decodes one image at a time, because a batch would
    be no faster and need B times the memory, and counts each as a step of the current stage.

    Raises:
        WorkerFailure: the latents contain NaN or infinity.
        CorruptFile: the VAE produces NaN or infinity even in float32.
        BatchCanceled: all jobs of the batch were canceled.
    """
    vae = warm.pipeline.vae

    def decode(latent: Tensor) -> Tensor:
        latent = latent.float() / vae.config.scaling_factor
        return vae.decode(latent.to(warm.device, vae.dtype), return_dict=False)[0].float().cpu()

    if not latents.isfinite().all():
        raise WorkerFailure(
            f"the UNet of {warm.file.name!r} produced NaN or infinite latents in {warm.dtype}; "
            "set IMAGEFLEET_DTYPE to bf16 or fp32"
        )
    images: list[Tensor] = []
    for latent in latents.split(1):
        images.append(_upcast_on_overflow(warm, decode, latent))
        progress.step()
    return torch.cat(images)


def _upcast_on_overflow(
    warm: WarmPipeline, run: Callable[[Tensor], Tensor], inputs: Tensor
) -> Tensor:
    """Call `run`, and if its output is not finite, upcast the VAE to float32 and retry once."""
    vae, name = warm.pipeline.vae, warm.file.name
    outputs = run(inputs)
    if outputs.isfinite().all():
        return outputs
    if vae.dtype != torch.float32:
        logger.warning(
            "the VAE of %s overflows in %s: upcast to float32",
            name,
            vae.dtype,
            extra={"action": "upcast_vae", "checkpoint": name},
        )
        VAE_UPCASTS.inc()
        # Not `to`: diffusers warns there about modules to keep in float32, though there are none.
        vae.float()
        outputs = run(inputs)
        if outputs.isfinite().all():
            return outputs
    raise CorruptFile(f"the VAE of {name!r} produces NaN or infinite images or latents")
