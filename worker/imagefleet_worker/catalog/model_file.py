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
    """What is read from a model file without loading it."""

    family: Family | None = None
    """A checkpoint's architecture, or the one that an adapter is for, if known."""
    native_size_px: int = 0
    """Image side that a checkpoint was trained at."""
    forms: tuple[str, ...] = ()
    """A LoRA's kinds (`lora`, `loha`, ...), an embedding's number of vectors, or a face restorer's
    architecture."""
    trigger_words: tuple[str, ...] = ()
    """Words that activate it in the prompt."""
    alias: str | None = None
    """The name that a LoRA was trained under, whatever its file is called now."""
    bundles_embeddings: bool = False
    """Whether a LoRA's file also contains textual inversions."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file; two are equal only if the file was not replaced in between.

    Attributes:
        name: by which requests name it.
        kind: of model.
        path: the file, or the diffusers folder. A file of the bucket is there once it is fetched.
        size_bytes: of the file, or of the folder's weights.
        modified_ns: last change, nanoseconds since the epoch.
        metadata: None if the file cannot be loaded, or could not be read just now.
        error: why a file that may be valid is unusable: it could not be read just now, or another
            file has its name.
        remote: its object in the bucket; None for a local file.
    """

    name: str
    kind: Kind
    path: Path
    size_bytes: int
    modified_ns: int
    metadata: ModelMetadata | None
    error: ImagefleetError | None = field(default=None, compare=False)
    remote: RemoteFile | None = None

    @property
    def family(self) -> Family | None:
        """The architecture that it has or is for; None if unknown."""
        return self.metadata.family if self.metadata else None

    @property
    def native_size_px(self) -> int:
        """Image side that a checkpoint was trained at; 0 for other kinds."""
        return self.metadata.native_size_px if self.metadata else 0

    @property
    def version(self) -> Version:
        """Identifies the content, as far as possible without reading it."""
        return (self.path, self.modified_ns, self.size_bytes)
