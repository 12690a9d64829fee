"""Labels of face restoration: writing and reading."""

from typing import cast

from imagefleet_shared.infotext.lines import number
from imagefleet_shared.request_parts import FaceRestore

AFTER_UPSCALE = "Face restoration after upscale"
_NAMES = {
    "Face restoration": "restorer",
    "Face restoration visibility": "visibility",
    AFTER_UPSCALE: "after_upscale",
}
_A1111_ARCHITECTURES = ("GFPGAN", "CodeFormer")
_UPSCALED = "Postprocess upscale "
"""Prefix of the labels of an upscale's size: `… by`, `… to`."""


def write_postprocess_fields(faces: FaceRestore | None) -> dict[str, object]:
    """All labels of restored faces, for the text of an upscaled image."""
    return {"Face restoration": faces.restorer, **write_fields(faces)} if faces else {}


def write_fields(faces: FaceRestore | None) -> dict[str, object]:
    """Labels besides the restorer's; A1111 has one for the weight only."""
    if faces is None:
        return {}
    return {
        "Face restoration visibility": None if faces.visibility == 1 else number(faces.visibility),
        "CodeFormer weight": None if faces.fidelity is None else number(faces.fidelity),
        AFTER_UPSCALE: True if faces.after_upscale else None,
    }


def restored_after_upscale(face_restore: object) -> bool:
    """Whether `read_fields` says that faces were restored after the upscale."""
    fields = cast(dict[str, object], face_restore) if isinstance(face_restore, dict) else {}
    return str(fields.get("after_upscale")) == "True"


def read_fields(labels: dict[str, str]) -> dict[str, object] | None:
    """Pop the labels of a `FaceRestore` and return its fields; None if no faces were restored.

    A1111's extras name no restorer, but have a visibility for each architecture, and the labels are
    in the order of processing. Its architectures are read as file names.
    """
    fields: dict[str, object] = {
        name: labels.pop(label) for label, name in _NAMES.items() if label in labels
    }
    for architecture in _A1111_ARCHITECTURES:
        label = f"{architecture} visibility"
        if "restorer" not in fields and label in labels:
            order = list(labels)
            before = order[: order.index(label)]
            fields["after_upscale"] = any(name.startswith(_UPSCALED) for name in before)
            fields |= {"restorer": architecture, "visibility": labels.pop(label)}
    if not fields:
        return None
    if "CodeFormer weight" in labels:
        fields["fidelity"] = labels.pop("CodeFormer weight")
    return fields
