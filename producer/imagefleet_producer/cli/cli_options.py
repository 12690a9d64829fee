"""What a caller asks for on the command line, and what a picture says, made into a request."""

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
"""What is 0 where a part is not wanted."""
_SIZES = ("scale", "width", "height")
_DEFAULT_UPSCALE = 2


@dataclass(frozen=True)
class CliOptions:
    """The options that were given: fields of the request, and of its parts by the part's name."""

    fields: Fields
    parts: Mapping[str, Fields]

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Options by name; those of a part have its name before theirs. None: not given."""
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

    def applied_to(self, picture: Fields) -> Fields:
        """A picture's fields, with what was asked for in the place of what it says."""
        fields = _merge(picture, self.fields)
        for name, asked in self.parts.items():
            before = fields.get(name)
            known: Fields = before if isinstance(before, dict) else {}
            if name in _OFF and asked.get(_OFF[name]) == 0:
                fields.pop(name, None)
            elif asked:
                changed = fields[name] = _merge(known, asked)
                if name == "upscale" and changed.keys().isdisjoint(_SIZES):
                    changed["scale"] = _DEFAULT_UPSCALE
        return self._drop_disabled(fields)

    def _drop_disabled(self, fields: Fields) -> Fields:
        """Nor what the picture says of a variation or an upscale that is no longer wanted."""
        left = dict(fields)
        if self.fields.get("variation_strength") == 0 and "variation_seed" not in self.fields:
            left.pop("variation_seed", None)
        faces = left.get("face_restore")
        if isinstance(faces, dict) and self.parts["upscale"].get("scale") == 0:
            asked = self.parts["face_restore"]
            said = {name: faces[name] for name in faces if name != "after_upscale"}
            left["face_restore"] = {**said, **asked}
        return left


def build_request(
    options: CliOptions, source: Path | None, client: Client
) -> tuple[GenerateRequest, Mapping[str, str]]:
    """The request, and what the source says that it does not heed.

    Args:
        asked: wins over the source; its files are put into the store.
        source: a picture to draw again.
        client: of the fleet whose store is meant.

    Raises:
        InvalidRequest: there is neither prompt nor picture, or it makes no sense.
    """
    fields, inpaint = options.fields, options.parts["inpaint"]
    image = mask = None
    if isinstance(path := fields.get("image"), Path):
        fields["image"] = image = client.put_image(path)
    if isinstance(path := inpaint.get("mask_image"), Path):
        inpaint["mask_image"] = mask = client.put_image(path)
    if source is None:
        if "prompt" not in fields:
            raise InvalidRequest("give a prompt, or a picture with --from")
        return GenerateRequest.model_validate(options.applied_to({})), {}
    said, ignored = _read_infotext(source).with_images(image, mask)
    return GenerateRequest.model_validate(options.applied_to(said)), ignored


def _read_infotext(source: Path) -> InfotextFields:
    text = read_parameters(source.read_bytes())
    if text is None:
        raise InvalidRequest(f"{source} carries no text of how it was made")
    return read(text)


def _merge(before: Fields, asked: Fields) -> Fields:
    """The one with the other's in their places; a new size or solver leaves no half of the old."""
    kept = dict(before)
    if "scale" in asked or ("scale" in before and {"width", "height"} & asked.keys()):
        for name in _SIZES:
            kept.pop(name, None)
    if "scheduler" in asked:
        kept.pop("sigma_schedule", None)
    return {**kept, **asked}
