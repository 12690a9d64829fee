"""The labels of restored faces, beside `Face restoration`: written and read."""

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
_ENLARGED = "Postprocess upscale "
"""How the labels of a size begin: `… by`, `… to`."""


def write_postprocess_fields(faces: FaceRestore | None) -> dict[str, object]:
    """All that the text of an enlarged picture tells of its faces."""
    return {"Face restoration": faces.restorer, **write_fields(faces)} if faces else {}


def write_fields(faces: FaceRestore | None) -> dict[str, object]:
    """What the text tells beside the restorer; A1111 has a word for the weight only."""
    if faces is None:
        return {}
    return {
        "Face restoration visibility": None if faces.visibility == 1 else number(faces.visibility),
        "CodeFormer weight": None if faces.fidelity is None else number(faces.fidelity),
        AFTER_UPSCALE: True if faces.after_upscale else None,
    }


def restored_after_upscale(taken: object) -> bool:
    """Whether faces that were `taken` were restored after the picture was enlarged."""
    fields = cast(dict[str, object], taken) if isinstance(taken, dict) else {}
    return str(fields.get("after_upscale")) == "True"


def read_fields(labels: dict[str, str]) -> dict[str, object] | None:
    """The labels taken as fields of a `FaceRestore`; None where no faces were restored.

    A1111's extras name no restorer, but have a visibility for each architecture, and the labels are
    in the order in which things were done. Its architectures are taken as names of files.
    """
    fields: dict[str, object] = {
        name: labels.pop(label) for label, name in _NAMES.items() if label in labels
    }
    for architecture in _A1111_ARCHITECTURES:
        label = f"{architecture} visibility"
        if "restorer" not in fields and label in labels:
            order = list(labels)
            before = order[: order.index(label)]
            fields["after_upscale"] = any(each.startswith(_ENLARGED) for each in before)
            fields |= {"restorer": architecture, "visibility": labels.pop(label)}
    if not fields:
        return None
    if "CodeFormer weight" in labels:
        fields["fidelity"] = labels.pop("CodeFormer weight")
    return fields
