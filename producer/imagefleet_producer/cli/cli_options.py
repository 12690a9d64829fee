"""Builds requests from command line options and from the infotext of an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imagefleet_producer.client import Client
from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.image_files import read_parameters
from imagefleet_shared.infotext import InfotextFields, read
from imagefleet_shared.requests import GenerateRequest

Fields = dict[str, object]

_PARTS = ("hires", "inpaint", "upscale", "face_restore")
_OFF = {"hires": "scale", "upscale": "scale", "face_restore": "visibility"}
"""The field of a part that switches it off if it is 0."""
_SIZES = ("scale", "width", "height")
_DEFAULT_UPSCALE = 2


@dataclass(frozen=True)
class CliOptions:
    """The options that were given: fields of the request, and fields of its parts by part."""

    fields: Fields
    parts: Mapping[str, Fields]

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Sort options by name; those of a part are prefixed with its name. None: not given."""
        fields: Fields = {}
        parts: dict[str, Fields] = {part: {} for part in _PARTS}
        for name, value in options.items():
            if value is None:
                continue
            part = next((part for part in _PARTS if name.startswith(f"{part}_")), None)
            if part:
                parts[part][name.removeprefix(f"{part}_")] = value
            elif name in GenerateRequest.model_fields:
                fields[name] = value
        if isinstance(size := fields.get("seed_resize_from"), str):
            fields["seed_resize_from"] = tuple(size.split("x"))
        return cls(fields, parts)

    def applied_to(self, image_fields: Fields) -> Fields:
        """An image's fields, overridden by the options."""
        fields = _merge(image_fields, self.fields)
        for name, options in self.parts.items():
            before = fields.get(name)
            base: Fields = before if isinstance(before, dict) else {}
            if name in _OFF and options.get(_OFF[name]) == 0:
                fields.pop(name, None)
            elif options:
                merged = fields[name] = _merge(base, options)
                if name == "upscale" and merged.keys().isdisjoint(_SIZES):
                    merged["scale"] = _DEFAULT_UPSCALE
        return self._drop_disabled(fields)

    def _drop_disabled(self, fields: Fields) -> Fields:
        """Drop the image's fields that depend on a variation or upscale that is switched off."""
        kept = dict(fields)
        if self.fields.get("variation_strength") == 0 and "variation_seed" not in self.fields:
            kept.pop("variation_seed", None)
        faces = kept.get("face_restore")
        if isinstance(faces, dict) and self.parts["upscale"].get("scale") == 0:
            from_image = {name: faces[name] for name in faces if name != "after_upscale"}
            kept["face_restore"] = {**from_image, **self.parts["face_restore"]}
        return kept


def build_request(
    options: CliOptions, source: Path | None, client: Client
) -> tuple[GenerateRequest, Mapping[str, str]]:
    """Build a request; also returns the labels of the source that it ignores.

    Args:
        options: override the source; their files are uploaded.
        source: an image to generate again.
        client: to upload with.

    Raises:
        InvalidRequest: there is neither a prompt nor a source, or the request is invalid.
    """
    fields, inpaint = options.fields, options.parts["inpaint"]
    image = mask = None
    if isinstance(path := fields.get("image"), Path):
        fields["image"] = image = client.put_image(path)
    if isinstance(path := inpaint.get("mask_image"), Path):
        inpaint["mask_image"] = mask = client.put_image(path)
    if source is None:
        if "prompt" not in fields:
            raise InvalidRequest("give a prompt, or an image with --from")
        return GenerateRequest.model_validate(options.applied_to({})), {}
    image_fields, ignored = _read_infotext(source).with_images(image, mask)
    return GenerateRequest.model_validate(options.applied_to(image_fields)), ignored


def _read_infotext(source: Path) -> InfotextFields:
    text = read_parameters(source.read_bytes())
    if text is None:
        raise InvalidRequest(f"{source} carries no text of its generation parameters")
    return read(text)


def _merge(base: Fields, options: Fields) -> Fields:
    """Override fields; a new size or scheduler replaces all fields of the old one."""
    kept = dict(base)
    if "scale" in options or ("scale" in base and {"width", "height"} & options.keys()):
        for name in _SIZES:
            kept.pop(name, None)
    if "scheduler" in options:
        kept.pop("sigma_schedule", None)
    return {**kept, **options}
