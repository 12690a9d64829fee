"""A1111's tags for extra networks, such as `<lora:name:0.8>`, taken out of a prompt."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagefleet_shared.errors import InvalidRequest

_KINDS = ("lora", "lyco")
# The name excludes "<", so that a text of nothing but open tags is scanned once, not once a tag.
_TAG = re.compile(r"<(\w+):([^<>]*)>")
_UNCLOSED = re.compile(rf"<(?:{'|'.join(_KINDS)}):[^<>]{{0,40}}")
_POSITIONS = ("te", "unet", "dyn")


@dataclass(frozen=True, kw_only=True)
class LoRARef:
    """A LoRA as a prompt asks for it."""

    name: str
    """File name without suffix, as written."""
    unet_scale: float = 1.0
    """Factor for the UNet's part; finite, may be negative."""
    text_encoder_scale: float = 1.0
    """Factor for the text encoders' part; finite, may be negative."""


def extract_loras(text: str) -> tuple[str, tuple[LoRARef, ...]]:
    """The text without its tags, and the LoRAs that they name, in order of first mention.

    Known are `<lora:name>`, `<lora:name:scale>`, `<lora:name:text encoder:unet>` and the named
    scales `te=` and `unet=`, which win over places; `lyco` means the same. Without a scale of its
    own the UNet takes the text encoder's. As in A1111 only the tag goes; the space on both of its
    sides stays. The same tag twice counts once.

    Raises:
        InvalidRequest: a tag of another kind, with a malformed or unknown part, or never closed; or
            one name with two scales. The message has the tag.
    """
    loras: dict[str, LoRARef] = {}
    for match in _TAG.finditer(text):
        tag, kind, parts = match[0], match[1], match[2].split(":")
        if kind not in _KINDS:
            raise InvalidRequest(f"{tag} asks for {kind!r}; known are {', '.join(_KINDS)}")
        lora = _lora(tag, parts)
        # A1111 would apply it twice, both times at the last scale, which nobody can mean.
        if loras.setdefault(lora.name, lora) != lora:
            raise InvalidRequest(f"{tag} gives {lora.name!r} a second scale; give it one")
    bare = _TAG.sub("", text)
    if unclosed := _UNCLOSED.search(bare):
        raise InvalidRequest(f"{unclosed[0]!r} is never closed by '>'")
    return bare, tuple(loras.values())


def _lora(tag: str, parts: Sequence[str]) -> LoRARef:
    name, *arguments = parts
    if not name.strip():
        raise InvalidRequest(f"{tag} has no name; write <lora:name:0.8>")
    scales = _scales(tag, arguments)
    text_encoder_scale = scales.get("te", 1.0)
    return LoRARef(
        name=name,
        unet_scale=scales.get("unet", text_encoder_scale),
        text_encoder_scale=text_encoder_scale,
    )


def _scales(tag: str, arguments: Sequence[str]) -> dict[str, float]:
    """Scales by name; what is named wins over what is placed, as in A1111."""
    named = dict(part.split("=", 1) for part in arguments if "=" in part)
    placed = [part for part in arguments if "=" not in part]
    if len(placed) > len(_POSITIONS) or not named.keys() <= set(_POSITIONS):
        raise InvalidRequest(f"{tag} has unknown parts; known are <lora:name:te:unet>, te=, unet=")
    given = dict(zip(_POSITIONS, placed, strict=False)) | named
    if "dyn" in given:
        raise InvalidRequest(f"{tag} limits the rank (dyn), which is not supported; leave it out")
    return {key: _scale(tag, value) for key, value in given.items()}


def _scale(tag: str, value: str) -> float:
    try:
        scale = float(value)
    except ValueError as exc:
        raise InvalidRequest(f"scale {value!r} in {tag} is no number") from exc
    if not math.isfinite(scale):
        raise InvalidRequest(f"scale {value!r} in {tag} is not finite")
    return scale
