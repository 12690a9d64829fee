"""A1111's labels of values that are not numbers, and lookup by label."""

from typing import Literal, TypeVar

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import (
    LANCZOS,
    NEAREST,
    Emphasis,
    LatentMode,
    MaskFill,
    ResizeMode,
)
from imagefleet_shared.samplers import OWN_TIMESTEPS, SchedulerName

RANDOM_SOURCES: dict[Literal["cpu", "gpu"], str] = {"cpu": "CPU", "gpu": "GPU"}
EMPHASES: dict[Emphasis, str] = {
    "original": "Original",
    "no_norm": "No norm",
    "ignore": "Ignore",
    "none": "None",
}
RESIZE_MODES: dict[ResizeMode, str] = {
    "just_resize": "Just resize",
    "crop_and_resize": "Crop and resize",
    "resize_and_fill": "Resize and fill",
    "latent": "Just resize (latent upscale)",
}
MASK_FILLS: dict[MaskFill, str] = {
    "fill": "fill",
    "original": "original",
    "latent_noise": "latent noise",
    "latent_nothing": "latent nothing",
}
LATENT_MODE_LABELS: dict[LatentMode, str] = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
}
UPSCALERS: dict[str, str] = {**LATENT_MODE_LABELS, LANCZOS: "Lanczos", NEAREST: "Nearest"}
MASK_MODES: dict[bool, str] = {False: "Inpaint masked", True: "Inpaint not masked"}
"""By `Inpaint.invert`."""
AREAS: dict[bool, str] = {False: "Whole picture", True: "Only masked"}
"""By `Inpaint.only_masked`."""

T = TypeVar("T")


def by_label(what: str, labels: dict[T, str], given: str) -> T:
    """The value of a label, in any case.

    Raises:
        InvalidRequest: there is no such label; the message lists the known ones.
    """
    for value, label in labels.items():
        if label.lower() == given.lower():
            return value
    raise InvalidRequest(f"unknown {what} {given!r}; allowed: {', '.join(labels.values())}")


def upscaler_by_label(given: str) -> str:
    """The upscaler of a label; any other text is the name of a model."""
    if given == "None":  # A1111 then resizes by Lanczos
        return LANCZOS
    return next((name for name, label in UPSCALERS.items() if label == given), given)


def eta_label(scheduler: SchedulerName) -> str:
    """Label of eta: A1111 has one for k-diffusion samplers and one for DDIM, PLMS and UniPC."""
    return "Eta DDIM" if scheduler in OWN_TIMESTEPS else "Eta"
