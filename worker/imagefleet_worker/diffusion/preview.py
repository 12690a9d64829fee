"""Previews of latents by a linear map of their channels to colours, without the VAE."""

import torch
from PIL import Image
from torch import Tensor

from imagefleet_worker.imaging.convert import from_unit_range
from imagefleet_worker.weights.families import Family

# `(4, 3)` factors and `(3,)` offsets from latents to red, green and blue in [0, 1], by a linear fit
# to what the VAE decodes. SD 1.x: "keturn" in
# https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204/2 ; SDXL: Timothy
# Alexis Vass, "Explaining the SDXL latent space",
# https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space .
_SD1 = (
    torch.tensor(
        [
            [0.298, 0.207, 0.208],
            [0.187, 0.286, 0.173],
            [-0.158, 0.189, 0.264],
            [-0.184, -0.271, -0.473],
        ]
    )
    / 2,
    torch.full((3,), 0.5),
)
_SDXL = (
    torch.tensor([[60, 60, 60], [-60, -5, 10], [25, 15, -5], [-70, -50, -35]]) / 255,
    torch.tensor([150, 140, 130]) / 255,
)
_COLOURS: dict[Family, tuple[Tensor, Tensor]] = {
    "sd1": _SD1,
    "sdxl": _SDXL,
    "sdxl_refiner": _SDXL,
}


def preview(latents: Tensor, family: Family) -> list[Image.Image]:
    """Preview latents, such as a step's prediction of the clean ones, as RGB images of their size.

    Args:
        latents: `(B, 4, H/8, W/8)`, scaled as for the UNet; any float dtype and device.
        family: the checkpoint's, which decides the VAE.
    """
    factors, offsets = _COLOURS[family]
    colours = torch.einsum("bchw,cr->brhw", latents.float().cpu(), factors)
    return from_unit_range((colours + offsets[:, None, None]).clamp(0, 1))
