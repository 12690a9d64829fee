"""Writes a request and the models it used as infotext.

Order, labels and omissions are those of A1111 v1.10 (`create_infotext` and what its passes add).
Our own labels, where A1111 has none: `Init image`, `Inpaint mask`, `Resize mode`, `Hires denoising
strength` (if img2img has one too), `Textual inversions`, `Postprocess upscaler 2 visibility`,
`Postprocess tile size` and `… overlap`, `Face restoration visibility` and `… after upscale`.
A1111's `Face restoration` is the architecture; ours is the file's name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imagefleet_shared.infotext import faces, labels
from imagefleet_shared.infotext.lines import join_fields, join_text, number
from imagefleet_shared.request_parts import HiresPass, LoRA, UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.samplers import SCHEDULER_LABELS, SIGMA_SCHEDULE_LABELS

_HASH_LENGTH = 10
_ADAPTER_HASH_LENGTH = 12
_TAGGED = re.compile(r"<(?:lora|lyco):([^<>:]*)")
_DEFAULT_OVERLAP: int = UpscalePass.model_fields["tile_overlap"].default


@dataclass(frozen=True)
class Models:
    """The model files that an image was generated with; digests are SHA-256, hexadecimal."""

    checkpoint: str
    checkpoint_sha256: str | None
    """None for a diffusers folder."""
    loras: Mapping[str, str]
    """Digests by name."""
    embeddings: Mapping[str, str]
    """Digests by name."""
    other_checkpoints: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digests of the refiner and of the hires pass's checkpoint, by name, where known."""
    padded: bool = False
    """Whether prompts with fewer windows than the longest were padded."""


def generated(
    request: GenerateRequest, seed: int, models: Models, variation_seed: int | None = None
) -> str:
    """The infotext of a generated image.

    A LoRA that is a field of the request is added to the prompt as a tag, so that the text is
    complete.

    Args:
        request: with all values that the worker decided, such as sizes.
        seed: of this image.
        models: that it was generated with; of digests the first ten or twelve digits are written.
        variation_seed: of this image; None: the request's.
    """
    if variation_seed is None:
        variation_seed = request.variation_seed
    varied, digest = request.variation_strength > 0, models.checkpoint_sha256
    fields: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": SCHEDULER_LABELS[request.scheduler],
        "Schedule type": SIGMA_SCHEDULE_LABELS[request.sigma_schedule],
        "CFG scale": number(request.guidance_scale),
        "Seed": seed,
        "Face restoration": request.face_restore and request.face_restore.restorer,
        "Size": f"{request.width}x{request.height}",
        "Model hash": digest and digest[:_HASH_LENGTH],
        "Model": models.checkpoint,
        "Variation seed": variation_seed if varied else None,
        "Variation seed strength": number(request.variation_strength) if varied else None,
        "Seed resize from": request.seed_resize_from and "{}x{}".format(*request.seed_resize_from),
        "Denoising strength": _strength(request),
        # A1111 counts from 1, diffusers from 0 skipped layers.
        "Clip skip": request.clip_skip and request.clip_skip + 1,
        # A1111 writes the source only if it is not the GPU.
        "RNG": "CPU" if request.rng == "cpu" else None,
        **_img2img(request),
        **(_hires(request, request.hires, models) if request.hires else {}),
        "Lora hashes": _hashes(models.loras),
        "TI hashes": _hashes(models.embeddings),
        "Textual inversions": _inversions(request),
        # A1111 does not pad by default; with this label it does.
        "Pad conds": models.padded or None,
        "Emphasis": None if request.emphasis == "original" else labels.EMPHASES[request.emphasis],
        labels.eta_label(request.scheduler): None if request.eta is None else number(request.eta),
        **_refiner(request, models),
        **(_postprocess(request.upscale) if request.upscale else {}),
        **faces.write_fields(request.face_restore),
        "Version": "Imagefleet 0.1.0",
    }
    return join_text(with_tags(request.prompt, request.loras), request.negative_prompt, fields)


def upscaled(request: UpscaleRequest, parameters: str | None) -> str:
    """The infotext of an upscaled image: that of its input, and the upscale."""
    text = join_fields(_postprocess(request) | faces.write_postprocess_fields(request.face_restore))
    if not parameters:
        return text
    separator = ", " if "\nSteps: " in "\n" + parameters else "\n"
    return f"{parameters}{separator}{text}"


def with_tags(prompt: str, loras: Sequence[LoRA]) -> str:
    """The prompt, with a tag added for each LoRA that has none in it."""
    tagged = set(_TAGGED.findall(prompt))
    tags = [_tag(lora) for lora in loras if lora.name not in tagged]
    return " ".join([prompt, *tags] if prompt else tags)


def _tag(lora: LoRA) -> str:
    text_encoders = lora.scale if lora.text_encoder_scale is None else lora.text_encoder_scale
    return f"<lora:{lora.name}:{number(text_encoders)}:{number(lora.scale)}>"


def _strength(request: GenerateRequest) -> str | None:
    if request.image is not None:
        return None if request.strength is None else number(request.strength)
    return number(request.hires.strength) if request.hires else None


def _img2img(request: GenerateRequest) -> dict[str, object]:
    """Labels of img2img and inpainting."""
    if request.image is None:
        return {}
    fields: dict[str, object] = {"Init image": request.image.key}
    if request.resize_mode != "just_resize":
        fields["Resize mode"] = labels.RESIZE_MODES[request.resize_mode]
    inpaint = request.inpaint
    if inpaint is None:
        return fields
    return fields | {
        "Inpaint mask": inpaint.mask_image.key,
        "Mask blur": inpaint.mask_blur,
        "Inpaint area": labels.AREAS[True] if inpaint.only_masked else None,
        "Masked area padding": inpaint.padding if inpaint.only_masked else None,
        "Mask mode": labels.MASK_MODES[True] if inpaint.invert else None,
        "Masked content": (None if inpaint.fill == "original" else labels.MASK_FILLS[inpaint.fill]),
    }


def _hires(request: GenerateRequest, hires: HiresPass, models: Models) -> dict[str, object]:
    strength = number(hires.strength) if request.image else None
    prompt = None
    if hires.prompt is not None or hires.loras is not None:
        # A request that is read back has its LoRAs as tags only: this pass must tag its own.
        own_prompt = request.prompt if hires.prompt is None else hires.prompt
        prompt = with_tags(own_prompt, request.loras if hires.loras is None else hires.loras)
    return {
        "Hires checkpoint": hires.checkpoint and _titled(hires.checkpoint, models),
        "Hires sampler": hires.scheduler and SCHEDULER_LABELS[hires.scheduler],
        "Hires prompt": prompt,
        "Hires negative prompt": hires.negative_prompt,
        "Hires schedule type": (
            hires.sigma_schedule and SIGMA_SCHEDULE_LABELS[hires.sigma_schedule]
        ),
        "Hires upscale": hires.scale and number(hires.scale),
        "Hires resize": None if hires.scale else f"{hires.width or 0}x{hires.height or 0}",
        "Hires steps": hires.num_inference_steps,
        "Hires upscaler": labels.UPSCALERS.get(hires.upscaler, hires.upscaler),
        "Hires denoising strength": strength,
    }


def _refiner(request: GenerateRequest, models: Models) -> dict[str, object]:
    if request.refiner_checkpoint is None:
        return {}
    return {
        "Refiner": _titled(request.refiner_checkpoint, models),
        "Refiner switch at": number(request.refiner_switch_at),
    }


def _titled(checkpoint: str, models: Models) -> str:
    """A refiner or hires checkpoint as A1111 writes it: with its short hash, if that is known."""
    digest = models.other_checkpoints.get(checkpoint)
    return f"{checkpoint} [{digest[:_HASH_LENGTH]}]" if digest else checkpoint


def _hashes(digests: Mapping[str, str]) -> str | None:
    hashes = (f"{name}: {digest[:_ADAPTER_HASH_LENGTH]}" for name, digest in digests.items())
    return ", ".join(hashes) or None


def _inversions(request: GenerateRequest) -> str | None:
    inversions = [
        inversion.model_dump(exclude_defaults=True) for inversion in request.textual_inversions
    ]
    return json.dumps(inversions, ensure_ascii=False) if inversions else None


def _postprocess(upscale: UpscalePass) -> dict[str, object]:
    size = None if upscale.scale else f"{upscale.width or 0}x{upscale.height or 0}"
    both, second, overlap = (
        upscale.width and upscale.height,
        upscale.upscaler_2,
        upscale.tile_overlap,
    )
    return {
        "Postprocess upscale by": upscale.scale and number(upscale.scale),
        "Postprocess upscale to": size,
        "Postprocess crop to": size if both and upscale.crop else None,
        "Postprocess upscaler": labels.UPSCALERS.get(upscale.upscaler, upscale.upscaler),
        "Postprocess upscaler 2": second and labels.UPSCALERS.get(second, second),
        "Postprocess upscaler 2 visibility": second and number(upscale.upscaler_2_visibility),
        "Postprocess tile size": upscale.tile_size,
        "Postprocess tile overlap": None if overlap == _DEFAULT_OVERLAP else overlap,
    }
