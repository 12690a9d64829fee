"""Pictures to latents and back, in half precision for as long as that goes well.

Some VAEs overflow in half precision, SDXL's first release among them, and decode to pictures that
are no numbers. Others of the same architecture do not, and no file says which it is: so every VAE
starts in the worker's dtype, and one that overflows goes on in float32, its weights as they were
rounded, for as long as its checkpoint stays warm. Pictures drawn before that stay as they are.
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
    """RGB pictures of one size as latents `(B, 4, H/8, W/8)`, scaled, float32, on the device.

    The mode of the VAE's posterior, not a sample of it: its spread is far below what a step of
    denoising changes, and a picture then encodes to the same latents in every batch and leaves
    each seed's noise alone. One at a time, for the same reason as `decode`.

    Raises:
        CorruptFile: the VAE gives no numbers, even in float32.
    """
    vae = warm.pipeline.vae

    def encoded(pixels: Tensor) -> Tensor:
        return vae.encode(pixels.to(warm.device, vae.dtype)).latent_dist.mode().float()

    latents = [_upcast_on_overflow(warm, encoded, to_vae_range(image)) for image in images]
    return torch.cat(latents) * vae.config.scaling_factor


def decode_latents(warm: WarmPipeline, latents: Tensor, progress: BatchProgress) -> Tensor:
    """Scaled latents `(B, 4, H/8, W/8)` of any float dtype as pictures `(B, 3, H, W)`.

    In about [-1, 1], float32 on the CPU. One at a time: a batch would be no faster and need B
    times the memory. Counts a step of the stage for each.

    Raises:
        WorkerFailure: the latents are no numbers.
        CorruptFile: the VAE gives no numbers, even in float32.
        AllEnded: no job is to go on.
    """
    vae = warm.pipeline.vae

    def decoded(latent: Tensor) -> Tensor:
        latent = latent.float() / vae.config.scaling_factor
        return vae.decode(latent.to(warm.device, vae.dtype), return_dict=False)[0].float().cpu()

    if not latents.isfinite().all():
        raise WorkerFailure(
            f"the UNet of {warm.file.name!r} gave latents that are no numbers in {warm.dtype}; "
            "set IMAGEFLEET_DTYPE to bf16 or fp32"
        )
    pictures: list[Tensor] = []
    for latent in latents.split(1):
        pictures.append(_upcast_on_overflow(warm, decoded, latent))
        progress.step()
    return torch.cat(pictures)


def _upcast_on_overflow(
    warm: WarmPipeline, run: Callable[[Tensor], Tensor], given: Tensor
) -> Tensor:
    """What `run` makes of what is given; once more in float32 where half precision overflows."""
    vae, name = warm.pipeline.vae, warm.file.name
    made = run(given)
    if made.isfinite().all():
        return made
    if vae.dtype != torch.float32:
        logger.warning(
            "the VAE of %s overflows in %s: it goes on in float32",
            name,
            vae.dtype,
            extra={"action": "upcast_vae", "checkpoint": name},
        )
        VAE_UPCASTS.inc()
        # Not `to`, at which diffusers warns of modules that are to stay in float32, though none is.
        vae.float()
        made = run(given)
        if made.isfinite().all():
            return made
    raise CorruptFile(f"the VAE of {name!r} gives pictures or latents that are no numbers")
