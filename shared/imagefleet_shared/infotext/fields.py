"""Labels taken, group by group, as fields of a request; what nobody takes is left.

Values stay text where the request's own checks read them.
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
    """Steps, guidance, size, and how the text steers them."""
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
    schedule = _schedule(labels, "Schedule type", _known(sampler))
    if schedule:
        fields["sigma_schedule"] = schedule
    if "Clip skip" in labels:
        # A1111 counts from 1, diffusers and we from "leave none out".
        skipped = _integer(labels, "Clip skip") - 1
        fields["clip_skip"] = skipped if skipped > 0 else None
    if "Emphasis" in labels:
        given = labels.pop("Emphasis")
        fields["emphasis"] = tables.by_label("Emphasis", tables.EMPHASES, given)
    return fields


def noise(labels: Labels, scheduler: object) -> Fields:
    """Seeds, and what is made of them."""
    fields = _pop_fields(labels, {"Seed": "seed", "Variation seed strength": "variation_strength"})
    if fields.get("variation_strength", "0") not in ("0", "0.0"):
        fields |= _pop_fields(labels, {"Variation seed": "variation_seed"})
    fields |= _pop_fields(labels, {tables.eta_label(_known(scheduler) or "euler"): "eta"})
    if "Seed resize from" in labels:
        width, height = _size(labels.pop("Seed resize from"))
        if not {width, height} & {"0", "-1"}:  # which older A1111 wrote for none
            fields["seed_resize_from"] = (width, height)
    # A1111 names a source only where it is not the GPU; NV gives the GPU's numbers on any device.
    source = labels.pop("RNG", "GPU")
    source = "GPU" if source == "NV" else source
    fields["rng"] = tables.by_label("RNG", tables.RANDOM_SOURCES, source)
    return fields


def models(labels: Labels) -> Fields:
    """Checkpoints and embeddings."""
    fields: Fields = {}
    if "Model" in labels:
        fields["checkpoint"] = labels.pop("Model")
        labels.pop("Model hash", None)
    if "Refiner" in labels:
        fields["refiner_checkpoint"] = _SHORT_HASH.sub("", labels.pop("Refiner"))
        fields |= _pop_fields(labels, {"Refiner switch at": "refiner_switch_at"})
    if "Textual inversions" in labels:
        given = labels.pop("Textual inversions")
        try:
            fields["textual_inversions"] = json.loads(given)
        except (ValueError, RecursionError) as exc:
            raise InvalidRequest(f"Textual inversions: {given!r} is not JSON") from exc
    return fields


def hires(labels: Labels, size: tuple[object, object], scheduler: object) -> Fields | None:
    """The hires pass; None where there was none."""
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
    elif fields["scale"] in ("1", "1.0"):  # which we have as a size only
        fields.pop("scale")
        fields["width"], fields["height"] = size
    own = _known(fields.get("scheduler"))
    schedule = _schedule(labels, "Hires schedule type", own or _known(scheduler))
    if schedule or own in OWN_TIMESTEPS:
        fields["sigma_schedule"] = schedule or "automatic"
    if "Hires checkpoint" in labels:
        fields["checkpoint"] = _SHORT_HASH.sub("", labels.pop("Hires checkpoint"))
    if "Hires upscaler" in labels:
        fields["upscaler"] = tables.upscaler_by_label(labels.pop("Hires upscaler"))
    ours, theirs = "Hires denoising strength", "Denoising strength"
    fields |= _pop_fields(labels, {ours if ours in labels else theirs: "strength"})
    return fields


def img2img(labels: Labels) -> Fields:
    """What img2img has of its own, and, where there is any sign of a mask, inpainting."""
    fields = _pop_fields(labels, {"Denoising strength": "strength"})
    if "Init image" in labels:
        fields["image"] = {"key": labels.pop("Init image")}
    if "Resize mode" in labels:
        given = labels.pop("Resize mode")
        fields["resize_mode"] = tables.by_label("Resize mode", tables.RESIZE_MODES, given)
    mask = _pop_fields(labels, {"Mask blur": "mask_blur", "Masked area padding": "padding"})
    if "Inpaint mask" in labels:
        mask["mask_image"] = {"key": labels.pop("Inpaint mask")}
    if "Mask mode" in labels:
        mask["invert"] = tables.by_label("Mask mode", tables.MASK_MODES, labels.pop("Mask mode"))
    if "Inpaint area" in labels:
        given = labels.pop("Inpaint area")
        mask["only_masked"] = tables.by_label("Inpaint area", tables.AREAS, given)
    if "Masked content" in labels:
        given = labels.pop("Masked content")
        mask["fill"] = tables.by_label("Masked content", tables.MASK_FILLS, given)
    if mask:
        # A1111 leaves out a blur of 0.
        fields["inpaint"] = {"mask_blur": 0, **mask}
    return fields


def upscale(labels: Labels) -> Fields | None:
    """The enlargement at the end; None where there was none."""
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
            # A1111 says the size of the picture that it cut, which is the target.
            fields["crop"] = labels.pop("Postprocess crop to", None) is not None
    for label, name in (
        ("Postprocess upscaler", "upscaler"),
        ("Postprocess upscaler 2", "upscaler_2"),
    ):
        if label in labels:
            fields[name] = tables.upscaler_by_label(labels.pop(label))
    # Blended with itself it is the same picture.
    if fields.get("upscaler_2") == fields.get("upscaler", LANCZOS):
        fields.pop("upscaler_2")
        fields.pop("upscaler_2_visibility", None)
    return fields


def _pop_fields(labels: Labels, names: dict[str, str]) -> Fields:
    return {name: labels.pop(label) for label, name in names.items() if label in labels}


def _known(scheduler: object) -> SchedulerName | None:
    """The solver of that label; None where there is none, which the request will refuse."""
    found = find_scheduler(scheduler) if isinstance(scheduler, str) else None
    return found and found[0]


def _schedule(labels: Labels, label: str, scheduler: SchedulerName | None) -> str | None:
    """The sigma schedule; left among the labels where the solver heeds none, as A1111 writes it."""
    given = labels.get(label)
    if given is None:
        return None
    if scheduler in OWN_TIMESTEPS and find_sigma_schedule(given) != "automatic":
        return None
    return labels.pop(label)


def _size(text: str) -> tuple[str, str]:
    width, _, height = text.partition("x")
    return width.strip(), height.strip()


def _integer(labels: Labels, label: str) -> int:
    given = labels.pop(label)
    try:
        return int(given)
    except ValueError as exc:
        raise InvalidRequest(f"{label}: {given!r} is no whole number") from exc
