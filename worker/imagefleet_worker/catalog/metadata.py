"""Reads the metadata of a model file without loading the model."""

from pathlib import Path

from imagefleet_worker.adapters.formats import describe_adapter
from imagefleet_worker.adapters.textual_inversion import load_embedding
from imagefleet_worker.catalog.listing import Kind
from imagefleet_worker.catalog.model_file import ModelMetadata
from imagefleet_worker.weights.diffusers_index import folder_family, folder_native_size_px
from imagefleet_worker.weights.face_architecture import read_architecture
from imagefleet_worker.weights.families import family_of, native_size_px
from imagefleet_worker.weights.safetensors_header import read_header


def read_metadata(path: Path, kind: Kind) -> ModelMetadata:
    """Read the metadata of a model file.

    Raises:
        CorruptFile: damaged, unsupported, or of another kind.
        FileUnavailable: the file cannot be read.
    """
    match kind:
        case "checkpoint":
            return _checkpoint(path)
        case "lora":
            described = describe_adapter(path)
            return ModelMetadata(
                family=described.family,
                forms=described.kinds,
                trigger_words=described.trigger_words,
                alias=described.alias,
                bundles_embeddings=described.bundles_embeddings,
            )
        case "embedding":
            embedding = load_embedding(path)
            return ModelMetadata(
                family="sdxl" if "text_encoder_2" in embedding.vectors else "sd1",
                forms=(f"{embedding.num_tokens} vectors",),
                trigger_words=(embedding.name,),
            )
        case "face":
            return ModelMetadata(forms=(read_architecture(path),))
        case "upscaler" | "face_part":
            return ModelMetadata()


def _checkpoint(path: Path) -> ModelMetadata:
    if path.is_dir():
        family = folder_family(path)
        return ModelMetadata(family=family, native_size_px=folder_native_size_px(path, family))
    header = read_header(path)
    family = family_of(header)
    return ModelMetadata(family=family, native_size_px=native_size_px(header, family))
