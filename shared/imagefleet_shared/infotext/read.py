"""Reads infotext, of Imagefleet or of A1111, back into a request.

A text cannot contain images. An img2img text of A1111 needs the initial image again, and its mask;
without them, the labels that concern them are ignored. Ours has the keys of both in the store.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.infotext import faces
from imagefleet_shared.infotext.fields import (
    Fields,
    Labels,
    hires,
    img2img,
    models,
    noise,
    sampling,
    upscale,
)
from imagefleet_shared.infotext.lines import split_text
from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.requests import GenerateRequest

_REDUNDANT_LABELS = (
    *("Version", "User", "Init image hash", "VAE hash", "Lora hashes", "TI hashes", "Hashes"),
    "Pad conds",
)
"""Labels that do not affect the image, repeat another label, or say what is always true here."""


@dataclass(frozen=True)
class InfotextFields:
    """The fields of a text. Values are as in the text: the request validates them."""

    fields: Fields
    """Fields of a `GenerateRequest`; its parts are mappings."""
    img2img_fields: Fields
    """Fields of img2img: `strength`, `resize_mode`, `inpaint`, and `image` if it is known."""
    ignored: Mapping[str, str]
    """Labels that no request field can represent, with their values."""
    ignored_without_image: Mapping[str, str]
    """Labels that `img2img_fields` was read from, which are ignored without an image."""

    def with_images(
        self, image: ImageRef | None = None, mask_image: ImageRef | None = None
    ) -> tuple[Fields, Mapping[str, str]]:
        """Fields of a request with these images, or those that the text names.

        Returns:
            The fields, and the labels that are ignored.
        """
        img2img_fields = dict(self.img2img_fields)
        if image:
            img2img_fields["image"] = image
        if "image" not in img2img_fields:
            return self.fields, {**self.ignored, **self.ignored_without_image}
        settings, ignored = img2img_fields.pop("inpaint", None), dict(self.ignored)
        inpaint: Fields = dict(settings) if isinstance(settings, dict) else {}
        if mask_image:
            inpaint["mask_image"] = mask_image
        fields = {**self.fields, **img2img_fields}
        if "mask_image" not in inpaint:
            return fields, ignored | _inpaint_labels(self.ignored_without_image)
        fields["inpaint"] = inpaint
        if faces.restored_after_upscale(fields.get("face_restore")):
            # No request can do that: faces outside the mask would be changed.
            del fields["face_restore"]
            ignored[faces.AFTER_UPSCALE] = "True"
        return fields, ignored


@dataclass(frozen=True)
class Parsed:
    """An infotext parsed into a request."""

    request: GenerateRequest
    ignored: Mapping[str, str]
    """Labels that no request field can represent, with their values."""


def parse(
    text: str | None, image: ImageRef | None = None, mask_image: ImageRef | None = None
) -> Parsed:
    """The request that an infotext describes.

    Args:
        text: of A1111 or of Imagefleet; None, which `read_parameters` returns if there is none, is
            refused.
        image: the initial image of img2img, if the text does not name it.
        mask_image: the mask, likewise.

    Raises:
        InvalidRequest: the text has no parameters, or invalid ones.
    """
    if text is None:
        raise InvalidRequest("the image carries no text of its generation parameters")
    fields, ignored = read(text).with_images(image, mask_image)
    return Parsed(GenerateRequest.model_validate(fields), ignored)


def read(text: str) -> InfotextFields:
    """The fields of an infotext, to be changed before they become a request.

    Raises:
        InvalidRequest: there is no line of labels, or a label's value is not allowed.
    """
    prompt, negative_prompt, pairs = split_text(text)
    labels, later = _first_of_each(pairs)
    fields: Fields = {"prompt": prompt, "negative_prompt": negative_prompt}
    fields |= sampling(labels)
    scheduler, size = fields.get("scheduler"), (fields.get("width"), fields.get("height"))
    fields |= noise(labels, scheduler) | models(labels)
    # Faces are read before the upscale pops its labels: the order of labels tells which ran first.
    parts = {
        "hires": hires(labels, size, scheduler),
        "face_restore": faces.read_fields(labels),
        "upscale": upscale(labels),
    }
    fields |= {name: part for name, part in parts.items() if part}
    before = dict(labels)
    img2img_fields = img2img(labels)
    needing_image = {label: value for label, value in before.items() if label not in labels}
    ignored = {**labels, **later}
    for label in _REDUNDANT_LABELS:
        ignored.pop(label, None)
    return InfotextFields(fields, img2img_fields, ignored, needing_image)


def _first_of_each(pairs: Iterable[tuple[str, str]]) -> tuple[Labels, Labels]:
    """The first value of each label, and the later ones, as of an image that was upscaled twice."""
    first: Labels = {}
    later: Labels = {}
    for label, value in pairs:
        if label in first:
            later[label] = value
        else:
            first[label] = value
    return first, later


def _inpaint_labels(labels: Mapping[str, str]) -> Labels:
    return {
        label: value for label, value in labels.items() if "Mask" in label or "Inpaint" in label
    }
