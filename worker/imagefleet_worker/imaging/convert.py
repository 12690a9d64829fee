"""Conversion between PIL images and tensors; the only module that converts value ranges.

Three ranges are in use: PIL's 0..255, *unit* [0, 1] (upscalers), and the VAE's [-1, 1] (diffusers).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_unit_range(image: Image.Image) -> Tensor:
    """An RGB image as `(1, 3, H, W)` float32 in [0, 1], on the CPU; equal to diffusers' result.

    A 16-bit grey image (I;16) keeps its full precision.
    """
    if image.mode == "I;16":
        grey = torch.from_numpy(np.asarray(image).astype(np.float32)) / 65535.0
        return grey.expand(1, 3, -1, -1)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    return pixels.contiguous().float().div_(255.0)


def from_unit_range(images: Tensor) -> list[Image.Image]:
    """`(B, 3, H, W)` in [0, 1], of any float dtype and device, as B RGB images, rounded."""
    # Permuted on the device, which is faster than on the host.
    pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(picture) for picture in _on_host(pixels).numpy()]


def _on_host(pixels: Tensor) -> Tensor:
    """A tensor in host memory; copied from a GPU once, into pinned memory."""
    if pixels.device.type != "cuda":
        return pixels.cpu()
    # torch caches pinned blocks for the next image; the blocking copy waits for the device.
    return torch.empty_like(pixels, device="cpu", pin_memory=True).copy_(pixels)


def to_vae_range(image: Image.Image) -> Tensor:
    """An RGB image as `(1, 3, H, W)` float32 in [-1, 1], on the CPU; equal to diffusers' result."""
    return 2.0 * to_unit_range(image) - 1.0


def from_vae_range(images: Tensor) -> list[Image.Image]:
    """The VAE's output, `(B, 3, H, W)` in about [-1, 1], as B RGB images, clamped.

    Of any float dtype and device. Equal to diffusers' result, also in half precision, where scaling
    happens before the cast to float32.
    """
    return from_unit_range((images * 0.5 + 0.5).clamp(0, 1))


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """A copy of the image at exactly that size in pixels, resampled with Lanczos."""
    return image.resize((width, height), Image.Resampling.LANCZOS)
