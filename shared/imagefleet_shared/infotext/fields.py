"""Reads labels as fields of a request, group by group; unknown labels are left.

Each function pops the labels that it reads. Values stay text if the request itself validates them.
"""

import json
import re

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import LANCZOS
from imagefleet_shared.infotext import labels as tables
from imagefleet_shared.samplers import (
    OWN_TIMESTEPS,
    SchedulerName,
    find_scheduler,
    find_sigma_schedule,
)

Labels = dict[str, str]
Fields = dict[str, object]

_SHORT_HASH = re.compile(r" \[[0-9a-f]{10}\]\Z")


def sampling(labels: Labels) -> Fields:
    """Steps, sampler, guidance, size, clip skip and emphasis."""
    fields = _pop_fields(
        labels,
        {
            "Steps": "num_inference_steps",
            "Sampler": "scheduler",
            "CFG scale": "guidance_scale",
        },
    )
    if "Size" in labels:
        fields["width"], fields["height"] = _size(labels.pop("Size"))
    sampler = fields.get("scheduler")
    schedule = _schedule(labels, "Schedule type", _scheduler_name(sampler))
    if schedule:
        fields["sigma_schedule"] = schedule
    if "Clip skip" in labels:
        # A1111 counts from 1, diffusers from 0 skipped layers.
        skipped = _integer(labels, "Clip skip") - 1
        fields["clip_skip"] = skipped if skipped > 0 else None
    if "Emphasis" in labels:
        label = labels.pop("Emphasis")
        fields["emphasis"] = tables.by_label("Emphasis", tables.EMPHASES, label)
    return fields


def noise(labels: Labels, scheduler: object) -> Fields:
    """Seeds, variations, eta and random number generator."""
    fields = _pop_fields(labels, {"Seed": "seed", "Variation seed strength": "variation_strength"})
    if fields.get("variation_strength", "0") not in ("0", "0.0"):
        fields |= _pop_fields(labels, {"Variation seed": "variation_seed"})
    fields |= _pop_fields(labels, {tables.eta_label(_scheduler_name(scheduler) or "euler"): "eta"})
    if "Seed resize from" in labels:
        width, height = _size(labels.pop("Seed resize from"))
        if not {width, height} & {"0", "-1"}:  # which older A1111 wrote for none
            fields["seed_resize_from"] = (width, height)
    # A1111 writes the source only if it is not the GPU; NV gives the GPU's numbers on any device.
    source = labels.pop("RNG", "GPU")
    source = "GPU" if source == "NV" else source
    fields["rng"] = tables.by_label("RNG", tables.RANDOM_SOURCES, source)
    return fields


def models(labels: Labels) -> Fields:
    """Checkpoint, refiner and textual inversions."""
    fields: Fields = {}
    if "Model" in labels:
        fields["checkpoint"] = labels.pop("Model")
        labels.pop("Model hash", None)
    if "Refiner" in labels:
        fields["refiner_checkpoint"] = _SHORT_HASH.sub("", labels.pop("Refiner"))
        fields |= _pop_fields(labels, {"Refiner switch at": "refiner_switch_at"})
    if "Textual inversions" in labels:
        text = labels.pop("Textual inversions")
        try:
            fields["textual_inversions"] = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InvalidRequest(f"Textual inversions: {text!r} is not JSON") from exc
    return fields


def hires(labels: Labels, size: tuple[object, object], scheduler: object) -> Fields | None:
    """The hires pass; None if there was none."""
    if not {"Hires upscale", "Hires resize"} & labels.keys():
        return None
    for label in ("Hires sampler", "Hires schedule type", "Hires checkpoint"):
        if labels.get(label, "").startswith("Use same "):
            labels.pop(label)
    fields = _pop_fields(
        labels,
        {
            "Hires upscale": "scale",
            "Hires steps": "num_inference_steps",
            "Hires sampler": "scheduler",
            "Hires prompt": "prompt",
            "Hires negative prompt": "negative_prompt",
        },
    )
    if "Hires resize" in labels:
        fields.pop("scale", None)
        sides = zip(("width", "height"), _size(labels.pop("Hires resize")), strict=True)
        fields |= {name: side for name, side in sides if side != "0"}
    elif fields["scale"] in ("1", "1.0"):  # a `HiresPass` has scale 1 as a size only
        fields.pop("scale")
        fields["width"], fields["height"] = size
    own = _scheduler_name(fields.get("scheduler"))
    schedule = _schedule(labels, "Hires schedule type", own or _scheduler_name(scheduler))
    if schedule or own in OWN_TIMESTEPS:
        fields["sigma_schedule"] = schedule or "automatic"
    if "Hires checkpoint" in labels:
        fields["checkpoint"] = _SHORT_HASH.sub("", labels.pop("Hires checkpoint"))
    if "Hires upscaler" in labels:
        fields["upscaler"] = tables.upscaler_by_label(labels.pop("Hires upscaler"))
    own_label, shared_label = "Hires denoising strength", "Denoising strength"
    fields |= _pop_fields(labels, {own_label if own_label in labels else shared_label: "strength"})
    return fields


def img2img(labels: Labels) -> Fields:
    """Fields of img2img and, if any label of a mask is present, inpainting."""
    fields = _pop_fields(labels, {"Denoising strength": "strength"})
    if "Init image" in labels:
        fields["image"] = {"key": labels.pop("Init image")}
    if "Resize mode" in labels:
        label = labels.pop("Resize mode")
        fields["resize_mode"] = tables.by_label("Resize mode", tables.RESIZE_MODES, label)
    mask = _pop_fields(labels, {"Mask blur": "mask_blur", "Masked area padding": "padding"})
    if "Inpaint mask" in labels:
        mask["mask_image"] = {"key": labels.pop("Inpaint mask")}
    if "Mask mode" in labels:
        mask["invert"] = tables.by_label("Mask mode", tables.MASK_MODES, labels.pop("Mask mode"))
    if "Inpaint area" in labels:
        label = labels.pop("Inpaint area")
        mask["only_masked"] = tables.by_label("Inpaint area", tables.AREAS, label)
    if "Masked content" in labels:
        label = labels.pop("Masked content")
        mask["fill"] = tables.by_label("Masked content", tables.MASK_FILLS, label)
    if mask:
        # A1111 leaves out a blur of 0.
        fields["inpaint"] = {"mask_blur": 0, **mask}
    return fields


def upscale(labels: Labels) -> Fields | None:
    """The upscale at the end; None if there was none."""
    if not {"Postprocess upscale by", "Postprocess upscale to"} & labels.keys():
        return None
    fields = _pop_fields(
        labels,
        {
            "Postprocess upscale by": "scale",
            "Postprocess upscaler 2 visibility": "upscaler_2_visibility",
            "Postprocess tile size": "tile_size",
            "Postprocess tile overlap": "tile_overlap",
        },
    )
    if "Postprocess upscale to" in labels:
        fields.pop("scale", None)
        sides = zip(("width", "height"), _size(labels.pop("Postprocess upscale to")), strict=True)
        fields |= {name: side for name, side in sides if side != "0"}
        if {"width", "height"} <= fields.keys():
            # A1111 writes the size after cropping, which is the target.
            fields["crop"] = labels.pop("Postprocess crop to", None) is not None
    for label, name in (
        ("Postprocess upscaler", "upscaler"),
        ("Postprocess upscaler 2", "upscaler_2"),
    ):
        if label in labels:
            fields[name] = tables.upscaler_by_label(labels.pop(label))
    # An image blended with itself is the same image.
    if fields.get("upscaler_2") == fields.get("upscaler", LANCZOS):
        fields.pop("upscaler_2")
        fields.pop("upscaler_2_visibility", None)
    return fields


def _pop_fields(labels: Labels, names: dict[str, str]) -> Fields:
    return {name: labels.pop(label) for label, name in names.items() if label in labels}


def _scheduler_name(scheduler: object) -> SchedulerName | None:
    """The scheduler of a label; None if it is unknown, which the request will refuse."""
    found = find_scheduler(scheduler) if isinstance(scheduler, str) else None
    return found and found[0]


def _schedule(labels: Labels, label: str, scheduler: SchedulerName | None) -> str | None:
    """The sigma schedule; None, leaving the label, if the scheduler ignores it, as in A1111."""
    value = labels.get(label)
    if value is None:
        return None
    if scheduler in OWN_TIMESTEPS and find_sigma_schedule(value) != "automatic":
        return None
    return labels.pop(label)


def _size(text: str) -> tuple[str, str]:
    width, _, height = text.partition("x")
    return width.strip(), height.strip()


def _integer(labels: Labels, label: str) -> int:
    value = labels.pop(label)
    try:
        return int(value)
    except ValueError as exc:
        raise InvalidRequest(f"{label}: {value!r} is not an integer") from exc
