"""Reads what a model file says of itself, without loading it for use."""

from pathlib import Path

from imagefleet_worker.adapters.formats import describe
from imagefleet_worker.adapters.textual_inversion import load_embedding
from imagefleet_worker.catalog.listing import Kind
from imagefleet_worker.catalog.model_file import Facts
from imagefleet_worker.weights.diffusers_index import folder_family, folder_native_size_px
from imagefleet_worker.weights.face_architecture import architecture_of
from imagefleet_worker.weights.families import family_of, native_size_px
from imagefleet_worker.weights.safetensors_header import read_header


def facts_of(path: Path, kind: Kind) -> Facts:
    """Read a file's facts.

    Raises:
        CorruptFile: damaged, unsupported, or of another kind.
        FileUnavailable: the file cannot be read.
    """
    match kind:
        case "checkpoint":
            return _checkpoint(path)
        case "lora":
            described = describe(path)
            return Facts(
                family=described.family,
                forms=described.kinds,
                trigger_words=described.trigger_words,
                alias=described.alias,
                bundles_embeddings=described.bundles_embeddings,
            )
        case "embedding":
            embedding = load_embedding(path)
            return Facts(
                family="sdxl" if "text_encoder_2" in embedding.vectors else "sd1",
                forms=(f"{embedding.length} vectors",),
                trigger_words=(embedding.name,),
            )
        case "face":
            return Facts(forms=(architecture_of(path),))
        case "upscaler" | "face_part":
            return Facts()


def _checkpoint(path: Path) -> Facts:
    if path.is_dir():
        family = folder_family(path)
        return Facts(family=family, native_size_px=folder_native_size_px(path, family))
    header = read_header(path)
    family = family_of(header)
    return Facts(family=family, native_size_px=native_size_px(header, family))
