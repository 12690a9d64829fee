"""The text of a picture, of ours or of A1111, read back into a request.

A text cannot hold pictures. What A1111 drew over another one needs that one again, and its mask:
without them, what concerns them is ignored. Ours names both by their keys in the store.
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
"""Labels that change no picture, say again what another one says, or what is always so here."""


@dataclass(frozen=True)
class InfotextFields:
    """What a text tells. Values are as the text has them: the request checks them."""

    fields: Fields
    """Of a `GenerateRequest`; parts are mappings."""
    img2img_fields: Fields
    """Of one that has an image: `strength`, `resize_mode`, `inpaint`, `image` where it is known."""
    ignored: Mapping[str, str]
    """Labels that say what no request can, with their values."""
    ignored_without_image: Mapping[str, str]
    """Labels that `drawn_over` was read from."""

    def with_images(
        self, image: ImageRef | None = None, mask_image: ImageRef | None = None
    ) -> tuple[Fields, Mapping[str, str]]:
        """Fields of a request that is drawn over these, or those that the text names.

        Returns:
            The fields, and the labels that are ignored.
        """
        over = dict(self.img2img_fields)
        if image:
            over["image"] = image
        if "image" not in over:
            return self.fields, {**self.ignored, **self.ignored_without_image}
        settings, ignored = over.pop("inpaint", None), dict(self.ignored)
        mask: Fields = dict(settings) if isinstance(settings, dict) else {}
        if mask_image:
            mask["mask_image"] = mask_image
        fields = {**self.fields, **over}
        if "mask_image" not in mask:
            return fields, ignored | _masking(self.ignored_without_image)
        fields["inpaint"] = mask
        if faces.restored_after_upscale(fields.get("face_restore")):
            # One request cannot: they would be redrawn where the mask keeps them.
            del fields["face_restore"]
            ignored[faces.AFTER_UPSCALE] = "True"
        return fields, ignored


@dataclass(frozen=True)
class Parsed:
    """A text as a request."""

    request: GenerateRequest
    ignored: Mapping[str, str]
    """Labels that it does not heed, with their values."""


def parse(
    text: str | None, image: ImageRef | None = None, mask_image: ImageRef | None = None
) -> Parsed:
    """The request that a picture's text describes.

    Args:
        text: of A1111 or of Imagefleet; None, which `read_parameters` gives for none, is refused.
        image: what it was drawn over, where it was and the text does not name it.
        mask_image: the mask, likewise.

    Raises:
        InvalidRequest: the text describes nothing, or something that cannot be done.
    """
    if text is None:
        raise InvalidRequest("the picture carries no text of how it was made")
    fields, ignored = read(text).with_images(image, mask_image)
    return Parsed(GenerateRequest.model_validate(fields), ignored)


def read(text: str) -> InfotextFields:
    """What a picture's text tells, for those who change it before they make it a request.

    Raises:
        InvalidRequest: no line of labels, or a label's value is none of those allowed.
    """
    prompt, negative_prompt, pairs = split_text(text)
    labels, later = _first_of_each(pairs)
    fields: Fields = {"prompt": prompt, "negative_prompt": negative_prompt}
    fields |= sampling(labels)
    scheduler, size = fields.get("scheduler"), (fields.get("width"), fields.get("height"))
    fields |= noise(labels, scheduler) | models(labels)
    # Faces before the upscale takes its labels: their order tells which ran first.
    parts = {
        "hires": hires(labels, size, scheduler),
        "face_restore": faces.read_fields(labels),
        "upscale": upscale(labels),
    }
    fields |= {name: part for name, part in parts.items() if part}
    before = dict(labels)
    over = img2img(labels)
    needing_image = {label: value for label, value in before.items() if label not in labels}
    ignored = {**labels, **later}
    for label in _REDUNDANT_LABELS:
        ignored.pop(label, None)
    return InfotextFields(fields, over, ignored, needing_image)


def _first_of_each(pairs: Iterable[tuple[str, str]]) -> tuple[Labels, Labels]:
    """What each label says first; and what it says later, as when a picture was enlarged twice."""
    first: Labels = {}
    later: Labels = {}
    for label, value in pairs:
        if label in first:
            later[label] = value
        else:
            first[label] = value
    return first, later


def _masking(labels: Mapping[str, str]) -> Labels:
    return {
        label: value for label, value in labels.items() if "Mask" in label or "Inpaint" in label
    }
