"""A1111's tags for extra networks, such as `<lora:name:0.8>`, taken out of a prompt."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagefleet_shared.errors import InvalidRequest

_KINDS = ("lora", "lyco")
# The name excludes "<", so that a text of nothing but open tags is scanned once, not once per tag.
_TAG = re.compile(r"<(\w+):([^<>]*)>")
_UNCLOSED = re.compile(rf"<(?:{'|'.join(_KINDS)}):[^<>]{{0,40}}")
_POSITIONS = ("te", "unet", "dyn")


@dataclass(frozen=True, kw_only=True)
class LoRARef:
    """A reference to a LoRA, as in a prompt's tag."""

    name: str
    """File name without suffix, as written."""
    unet_scale: float = 1.0
    """Factor for the UNet's part; finite, may be negative."""
    text_encoder_scale: float = 1.0
    """Factor for the text encoders' part; finite, may be negative."""


def extract_loras(text: str) -> tuple[str, tuple[LoRARef, ...]]:
    """The text without its tags, and the LoRAs that they name, in order of first mention.

    Supported are `<lora:name>`, `<lora:name:scale>`, `<lora:name:text encoder:unet>` and the named
    scales `te=` and `unet=`, which override positional ones; `lyco` is an alias of `lora`. The
    UNet's scale defaults to the text encoder's. As in A1111 only the tag itself is removed, not the
    whitespace around it. Repeating a tag has no effect.

    Raises:
        InvalidRequest: a tag is of another kind, malformed or never closed, or one name has two
            scales. The message contains the tag.
    """
    loras: dict[str, LoRARef] = {}
    for match in _TAG.finditer(text):
        tag, kind, parts = match[0], match[1], match[2].split(":")
        if kind not in _KINDS:
            raise InvalidRequest(f"{tag} asks for {kind!r}; known are {', '.join(_KINDS)}")
        lora = _lora(tag, parts)
        # A1111 would apply it twice, both times at the last scale, which nobody can want.
        if loras.setdefault(lora.name, lora) != lora:
            raise InvalidRequest(f"{tag} gives {lora.name!r} a second scale; give it one")
    without_tags = _TAG.sub("", text)
    if unclosed := _UNCLOSED.search(without_tags):
        raise InvalidRequest(f"{unclosed[0]!r} is never closed by '>'")
    return without_tags, tuple(loras.values())


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
    """Scales by name; named arguments override positional ones, as in A1111."""
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    positional = [argument for argument in arguments if "=" not in argument]
    if len(positional) > len(_POSITIONS) or not named.keys() <= set(_POSITIONS):
        raise InvalidRequest(f"{tag} has unknown parts; known are <lora:name:te:unet>, te=, unet=")
    values = dict(zip(_POSITIONS, positional, strict=False)) | named
    if "dyn" in values:
        raise InvalidRequest(f"{tag} limits the rank (dyn), which is not supported; leave it out")
    return {key: _scale(tag, value) for key, value in values.items()}


def _scale(tag: str, value: str) -> float:
    try:
        scale = float(value)
    except ValueError as exc:
        raise InvalidRequest(f"scale {value!r} in {tag} is no number") from exc
    if not math.isfinite(scale):
        raise InvalidRequest(f"scale {value!r} in {tag} is not finite")
    return scale
