"""What a file's tensors are called where its writer does not name them all as Stability does."""

from collections.abc import Collection

from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import (
    CLIP_PREFIXES,
    OPEN_CLIP_PREFIXES,
    LdmComponent,
    LdmName,
    ldm_names,
)


def file_names(
    family: Family, component: LdmComponent, keys: Collection[str], stored: Collection[str]
) -> dict[str, LdmName]:
    """As `ldm_names`, for a file that holds the tensors `stored`."""
    names = ldm_names(family, component, keys)
    if component == "text_encoder":
        usual, found = CLIP_PREFIXES[family], clip_prefix(family, stored)
        return {key: LdmName(found + name.key.removeprefix(usual)) for key, name in names.items()}
    if component == "text_encoder_2":
        return {**names, "text_projection.weight": text_projection(family, stored)}
    return names


def clip_prefix(family: Family, stored: Collection[str]) -> str:
    """The start of the names of CLIP-L's tensors.

    The level "text_model." is not there in NovelAI's model and what was merged from it (A1111 puts
    it in), nor in what diffusers' converters write from transformers 5.6's names.
    """
    usual = CLIP_PREFIXES[family]
    shorter = usual.removesuffix("text_model.")
    probe = "embeddings.token_embedding.weight"
    return shorter if usual + probe not in stored and shorter + probe in stored else usual


def text_projection(family: Family, stored: Collection[str]) -> LdmName:
    """OpenCLIP's projection: a matrix in OpenCLIP, a linear layer to diffusers' converter."""
    key = f"{OPEN_CLIP_PREFIXES[family]}text_projection"
    if key not in stored and f"{key}.weight" in stored:
        return LdmName(f"{key}.weight")
    return LdmName(key, transposed=True)
