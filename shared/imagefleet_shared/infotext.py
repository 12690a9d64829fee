"""The `parameters` text that a picture carries, in A1111's format.

Three parts, each on a line of its own: the prompt; `Negative prompt: …` where there is one; then
`Steps: …, Sampler: …` and so on, in A1111's order. A value with a comma, a colon or a line break is
written as a JSON string.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from .parts import UpscalePass
from .requests import GenerateRequest, UpscaleRequest
from .samplers import SCHEDULER_LABELS, SIGMA_SCHEDULE_LABELS

_HASH_LENGTH = 10
_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}


@dataclass(frozen=True)
class LoraUse:
    """How much of a LoRA a picture has."""

    unet_scale: float
    text_encoder_scale: float
    sha256: str
    """Of the file, hexadecimal."""


@dataclass(frozen=True)
class Models:
    """The files that a picture was made with."""

    checkpoint: str
    checkpoint_sha256: str | None
    """None for a diffusers folder."""
    loras: Mapping[str, LoraUse]
    """By name."""
    embeddings: Mapping[str, str]
    """SHA-256 of the files, by name."""


def generated(request: GenerateRequest, seed: int, models: Models) -> str:
    """The text of a drawn picture.

    A LoRA that came as a field is added to the prompt as a tag, so that the text tells all.

    Args:
        request: with everything decided, sizes above all.
        seed: of this picture.
        models: what it was made with; of hashes A1111 shows the first ten or twelve digits.
    """
    img2img = request.image is not None
    strength = request.strength if img2img else request.hires and request.hires.strength
    digest = models.checkpoint_sha256
    loras = {name: use.sha256 for name, use in models.loras.items()}
    fields: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": SCHEDULER_LABELS[request.scheduler],
        "Schedule type": SIGMA_SCHEDULE_LABELS[request.sigma_schedule],
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": digest and digest[:_HASH_LENGTH],
        "Model": models.checkpoint,
        "Denoising strength": strength and f"{strength:g}",
        # A1111 counts from 1, diffusers and we from "leave none out".
        "Clip skip": request.clip_skip and request.clip_skip + 1,
        **_hires(request),
        **(_postprocess(request.upscale) if request.upscale else {}),
        "Lora hashes": _hashes(loras),
        "TI hashes": _hashes(models.embeddings),
        "Version": "Imagefleet 0.1.0",
    }
    lines = [request.prompt + _missing_tags(request.prompt, models.loras)]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    return "\n".join([*lines, _join(fields)])


def upscaled(request: UpscaleRequest, parameters: str | None) -> str:
    """The text of an enlarged picture: that of its input, and what was done to it."""
    text = _join(_postprocess(request))
    if not parameters:
        return text
    separator = ", " if "\nSteps: " in "\n" + parameters else "\n"
    return f"{parameters}{separator}{text}"


def _missing_tags(prompt: str, loras: Mapping[str, LoraUse]) -> str:
    return "".join(
        f" <lora:{name}:{use.text_encoder_scale:g}:{use.unet_scale:g}>"
        for name, use in loras.items()
        if f":{name}" not in prompt
    )


def _hashes(digests: Mapping[str, str]) -> str | None:
    return ", ".join(f"{name}: {digest[:12]}" for name, digest in digests.items()) or None


def _hires(request: GenerateRequest) -> dict[str, object]:
    hires = request.hires
    if hires is None:
        return {}
    return {
        "Hires upscale": hires.scale and f"{hires.scale:g}",
        "Hires resize": None if hires.scale else f"{hires.width}x{hires.height}",
        "Hires steps": hires.num_inference_steps,
        "Hires upscaler": _UPSCALERS.get(hires.upscaler, hires.upscaler),
    }


def _postprocess(upscale: UpscalePass) -> dict[str, object]:
    return {
        "Postprocess upscale by": f"{upscale.scale:g}",
        "Postprocess upscaler": _UPSCALERS.get(upscale.upscaler, upscale.upscaler),
    }


def _join(fields: dict[str, object]) -> str:
    return ", ".join(
        f"{key}: {_quoted(value)}" for key, value in fields.items() if value is not None
    )


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text
