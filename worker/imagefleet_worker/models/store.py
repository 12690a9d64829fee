"""The models of a worker, by name: what is in its model folder and nothing else.

Read are the subfolders ``checkpoints``, ``loras``, ``embeddings``, ``upscalers`` and ``faces``, and
A1111's own names for them, at any depth; upper and lower case count the same. A model's name is its
file's name without the suffix, or the name of a diffusers folder. Names are looked up in a listing
and never become part of a path.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from imagefleet_shared.errors import (
    CorruptFile,
    FileUnavailable,
    UnknownCheckpoint,
    UnknownEmbedding,
    UnknownFaceRestorer,
    UnknownLora,
    UnknownUpscaler,
    WorkerFailure,
)

from .facts import Facts, facts_of
from .families import Family
from .listing import Kind, NamedKind, model_paths

_NOT_A_NAME = re.compile(r"[/\\\0]|\.\.|^[A-Za-z]:")
_UNKNOWN = {
    "checkpoint": UnknownCheckpoint,
    "lora": UnknownLora,
    "embedding": UnknownEmbedding,
    "upscaler": UnknownUpscaler,
    "face": UnknownFaceRestorer,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model on disk; two are equal only if the file was not replaced in between.

    Attributes:
        name: what requests call it.
        kind: what it is for.
        path: the file, or the diffusers folder.
        size_bytes: of the file, or of the folder's weights.
        modified_ns: last change, nanoseconds since the epoch.
        facts: what it says of itself; None for what cannot be loaded.
    """

    name: str
    kind: Kind
    path: Path
    size_bytes: int
    modified_ns: int
    facts: Facts | None

    @property
    def family(self) -> Family | None:
        """The architecture that it has or is for; None where that cannot be told."""
        return self.facts.family if self.facts else None

    @property
    def native_size_px(self) -> int:
        """Picture side that a checkpoint was trained at; 0 for anything else."""
        return self.facts.native_size_px if self.facts else 0


_Version = tuple[Path, int, int]


class ModelStore:
    """Finds models under one folder; every call sees the folder as it is now.

    Links that lead out of the folder, and links to folders, are ignored. Headers and digests are
    read once for each version of a file. Safe to use from several threads.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._facts: dict[_Version, Facts | None] = {}
        self._digests: dict[_Version, str] = {}

    def listed(self, kind: Kind) -> tuple[ModelFile, ...]:
        """The models of a kind that load here, by name; ambiguous names are left out."""
        table = self._table(kind)
        return tuple(
            files[0]
            for name, files in sorted(table.items())
            if len(files) == 1 and not _NOT_A_NAME.search(name) and files[0].facts
        )

    def find(self, kind: NamedKind, name: str) -> ModelFile:
        """The model of that name.

        Raises:
            UnknownCheckpoint, UnknownLora, UnknownEmbedding, UnknownUpscaler, UnknownFaceRestorer:
                there is none, or the name could be a path.
            CorruptFile: it is damaged, unsupported, or a pickle where none is read; the message
                says how to convert that.
            FileUnavailable: the model folder or the file cannot be read.
            WorkerFailure: two files have that name.
        """
        files = [] if _NOT_A_NAME.search(name) else self._table(kind).get(name, [])
        if not files:
            raise _UNKNOWN[kind](name, [known.name for known in self.listed(kind)])
        if len(files) > 1:
            paths = " and ".join(str(file.path.relative_to(self._root.resolve())) for file in files)
            raise WorkerFailure(f"several {kind}s are named {name!r}: {paths}; rename all but one")
        if files[0].facts is None:
            # Read again for the reason; a file that was mended in between is fine.
            facts_of(files[0].path, kind)
        return files[0]

    def sha256(self, file: ModelFile) -> str | None:
        """The file's SHA-256 in hexadecimal, read once for each version; None for a folder.

        Raises:
            FileUnavailable: the file cannot be read.
        """
        if file.path.is_dir():
            return None
        version = (file.path, file.modified_ns, file.size_bytes)
        if version not in self._digests:
            try:
                with file.path.open("rb") as stream:
                    self._digests[version] = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as exc:
                raise FileUnavailable(f"{file.path.name} cannot be read: {exc.strerror}") from exc
        return self._digests[version]

    def known_sha256(self, file: ModelFile) -> str | None:
        """The file's SHA-256 if it was asked for before; reads nothing."""
        return self._digests.get((file.path, file.modified_ns, file.size_bytes))

    def _table(self, kind: Kind) -> dict[str, list[ModelFile]]:
        """Files by name; of several those that load: a kept .ckpt does not hide its conversion."""
        table: dict[str, list[ModelFile]] = {}
        for path in model_paths(self._root, kind):
            file = self._describe(path, kind)
            if file is not None:
                table.setdefault(file.name, []).append(file)
        return {
            name: [file for file in files if file.facts] or files for name, files in table.items()
        }

    def _describe(self, path: Path, kind: Kind) -> ModelFile | None:
        folder = path.is_dir()
        try:
            stats = [part.stat() for part in (path.rglob("*.safetensors") if folder else [path])]
        except OSError:
            # Deleted since it was listed.
            return None
        size_bytes = sum(stat.st_size for stat in stats)
        modified_ns = max((stat.st_mtime_ns for stat in stats), default=0)
        version = (path, modified_ns, size_bytes)
        if version not in self._facts:
            self._facts[version] = _facts_or_none(path, kind)
        return ModelFile(
            name=path.name if folder else path.stem,
            kind=kind,
            path=path,
            size_bytes=size_bytes,
            modified_ns=modified_ns,
            facts=self._facts[version],
        )


def _facts_or_none(path: Path, kind: Kind) -> Facts | None:
    try:
        return facts_of(path, kind)
    except (CorruptFile, FileUnavailable) as exc:
        logger.warning("%s left out: %s", kind, exc, extra={"action": "list_model"})
        return None
