"""Resizing in latent space, without decoding."""

from torch import Tensor
from torch.nn.functional import interpolate

from imagefleet_shared.field_types import LatentMode

_INTERPOLATIONS: dict[LatentMode, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
"""PyTorch's `mode` and `antialias` for A1111's upscalers "Latent" to "Latent (nearest-exact)"."""


def resize_latents(latents: Tensor, width: int, height: int, mode: LatentMode) -> Tensor:
    """Resize latents `(B, C, h, w)` to those of width x height pixels, both multiples of 8."""
    name, antialias = _INTERPOLATIONS[mode]
    size = (height // 8, width // 8)
    # In float32: PyTorch cannot antialias in half precision on the CPU.
    return interpolate(latents.float(), size=size, mode=name, antialias=antialias).to(latents)
