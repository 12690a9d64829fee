"""LDM names in files whose writer deviates from Stability's names."""

from collections.abc import Collection

from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import (
    CLIP_PREFIXES,
    OPEN_CLIP_PREFIXES,
    LdmComponent,
    LdmName,
    ldm_names,
)


def file_ldm_names(
    family: Family, component: LdmComponent, keys: Collection[str], stored: Collection[str]
) -> dict[str, LdmName]:
    """As `ldm_names`, for a file with the tensor names `stored`."""
    names = ldm_names(family, component, keys)
    if component == "text_encoder":
        standard, prefix = CLIP_PREFIXES[family], clip_prefix(family, stored)
        return {
            key: LdmName(prefix + name.key.removeprefix(standard)) for key, name in names.items()
        }
    if component == "text_encoder_2":
        return {**names, "text_projection.weight": text_projection(family, stored)}
    return names


def clip_prefix(family: Family, stored: Collection[str]) -> str:
    """The prefix of CLIP-L's tensor names.

    NovelAI's model and its merges lack the level "text_model." (A1111 inserts it), as do files
    written by diffusers' converters with transformers 5.6.
    """
    standard = CLIP_PREFIXES[family]
    without_level = standard.removesuffix("text_model.")
    probe = "embeddings.token_embedding.weight"
    return (
        without_level
        if standard + probe not in stored and without_level + probe in stored
        else standard
    )


def text_projection(family: Family, stored: Collection[str]) -> LdmName:
    """OpenCLIP's text projection: a bare matrix, or a linear weight by diffusers' converter."""
    key = f"{OPEN_CLIP_PREFIXES[family]}text_projection"
    if key not in stored and f"{key}.weight" in stored:
        return LdmName(f"{key}.weight")
    return LdmName(key, transposed=True)
