"""What can be told of a model file without loading it for use."""

from dataclasses import dataclass
from pathlib import Path

from imagefleet_worker.adapters.formats import describe
from imagefleet_worker.adapters.textual_inversion import load_embedding
from imagefleet_worker.catalog.listing import Kind
from imagefleet_worker.checkpoints.diffusers_folder import folder_family, folder_native_size_px
from imagefleet_worker.weights.face_architecture import architecture_of
from imagefleet_worker.weights.families import Family, family_of, native_size_px
from imagefleet_worker.weights.safetensors_header import read_header


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A file's own word on itself."""

    family: Family | None = None
    """A checkpoint's architecture, or the one that an adapter is for, where it can be told."""
    native_size_px: int = 0
    """Picture side that a checkpoint was trained at."""
    forms: tuple[str, ...] = ()
    """A LoRA's kinds (`lora`, `loha`, ...), an embedding's number of vectors, or a face restorer's
    architecture."""
    trigger_words: tuple[str, ...] = ()
    """What to put into the prompt for it."""
    alias: str | None = None
    """What a LoRA was called when it was trained, whatever its file is called now."""
    bundles_embeddings: bool = False
    """Whether a LoRA's file carries textual inversions too."""


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
