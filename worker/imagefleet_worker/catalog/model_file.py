"""A model that requests can name."""

from dataclasses import dataclass, field
from pathlib import Path

from imagefleet_shared.errors import ImagefleetError
from imagefleet_worker.catalog.bucket import RemoteFile
from imagefleet_worker.catalog.listing import Kind
from imagefleet_worker.weights.families import Family

Version = tuple[Path, int, int]


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
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


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model; two are equal only if the file was not replaced in between.

    Attributes:
        name: what requests call it.
        kind: what it is for.
        path: the file, or the diffusers folder. One of the bucket lies there once it is fetched.
        size_bytes: of the file, or of the folder's weights.
        modified_ns: last change, nanoseconds since the epoch.
        facts: what it says of itself; None for what cannot be loaded, or not now.
        fault: why it may be good and yet is not used: it could not be read just now, or another
            has its name.
        remote: where it is in the bucket; None for a local one.
    """

    name: str
    kind: Kind
    path: Path
    size_bytes: int
    modified_ns: int
    metadata: ModelMetadata | None
    fault: ImagefleetError | None = field(default=None, compare=False)
    remote: RemoteFile | None = None

    @property
    def family(self) -> Family | None:
        """The architecture that it has or is for; None where that cannot be told."""
        return self.metadata.family if self.metadata else None

    @property
    def native_size_px(self) -> int:
        """Picture side that a checkpoint was trained at; 0 for anything else."""
        return self.metadata.native_size_px if self.metadata else 0

    @property
    def version(self) -> Version:
        """Equal for equal content, as far as can be told without reading it."""
        return (self.path, self.modified_ns, self.size_bytes)
