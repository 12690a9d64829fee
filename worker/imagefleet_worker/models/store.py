"""The models of a worker, by name: what is in its model folder and nothing else.

Read are the subfolders ``checkpoints/`` and ``upscalers/``, and A1111's own names for them, at any
depth; upper and lower case count the same. A model's name is its file's name without the suffix,
or the name of a diffusers folder. Names are looked up in a listing and never become part of a
path.
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
    UnknownUpscaler,
    WorkerFailure,
)
from imagefleet_worker.models.diffusers_folder import folder_family, folder_native_size_px
from imagefleet_worker.models.families import Family, family_of, native_size_px
from imagefleet_worker.models.header import read_header
from imagefleet_worker.models.listing import Kind, model_paths

_NOT_A_NAME = re.compile(r"[/\\\0]|\.\.|^[A-Za-z]:")

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
        family: a checkpoint's architecture; None for upscalers and for what cannot be loaded.
        native_size_px: the picture side that a checkpoint was trained at; 0 where `family` is None.
    """

    name: str
    kind: Kind
    path: Path
    size_bytes: int
    modified_ns: int
    family: Family | None
    native_size_px: int


_Version = tuple[Path, int, int]
_Base = tuple[Family, int]


class ModelStore:
    """Finds models under one folder; every call sees the folder as it is now.

    Links that lead out of the folder, and links to folders, are ignored. Headers and digests are
    read once for each version of a file. Safe to use from several threads.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bases: dict[_Version, _Base | None] = {}
        self._digests: dict[_Version, str] = {}

    def checkpoints(self) -> tuple[ModelFile, ...]:
        """The checkpoints that load here, by name; ambiguous names are left out."""
        return self._listed("checkpoint")

    def upscalers(self) -> tuple[ModelFile, ...]:
        """The upscalers, by name; ambiguous names are left out."""
        return self._listed("upscaler")

    def checkpoint(self, name: str) -> ModelFile:
        """The checkpoint of that name.

        Raises:
            UnknownCheckpoint: there is none, or the name could be a path.
            CorruptFile: it is damaged, unsupported, or a pickle; the message says how to convert
                that.
            FileUnavailable: the model folder or the file cannot be read.
            WorkerFailure: two files have that name.
        """
        file = self._find("checkpoint", name)
        if file is None:
            raise UnknownCheckpoint(name, [known.name for known in self.checkpoints()])
        if file.family is None:
            # Read again for the reason; a file that was mended in between is fine.
            _read_base(file.path)
        return file

    def upscaler(self, name: str) -> ModelFile:
        """The upscaler of that name.

        Raises:
            UnknownUpscaler: there is none, or the name could be a path.
            FileUnavailable: the model folder cannot be read.
            WorkerFailure: two files have that name.
        """
        file = self._find("upscaler", name)
        if file is None:
            raise UnknownUpscaler(name, [known.name for known in self.upscalers()])
        return file

    def sha256(self, file: ModelFile) -> str:
        """The file's SHA-256 in hexadecimal, read once for each version of the file.

        Raises:
            FileUnavailable: the file cannot be read, or is a diffusers folder, which has no one
                hash.
        """
        version = (file.path, file.modified_ns, file.size_bytes)
        if version not in self._digests:
            try:
                with file.path.open("rb") as stream:
                    self._digests[version] = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as exc:
                raise FileUnavailable(f"{file.path.name} cannot be read: {exc.strerror}") from exc
        return self._digests[version]

    def _find(self, kind: Kind, name: str) -> ModelFile | None:
        if _NOT_A_NAME.search(name):
            return None
        files = self._table(kind).get(name, [])
        if len(files) > 1:
            paths = " and ".join(str(file.path.relative_to(self._root.resolve())) for file in files)
            raise WorkerFailure(f"several {kind}s are named {name!r}: {paths}; rename all but one")
        return files[0] if files else None

    def _listed(self, kind: Kind) -> tuple[ModelFile, ...]:
        table = self._table(kind)
        return tuple(
            files[0]
            for name, files in sorted(table.items())
            if len(files) == 1
            and not _NOT_A_NAME.search(name)
            and (kind == "upscaler" or files[0].family)
        )

    def _table(self, kind: Kind) -> dict[str, list[ModelFile]]:
        """Files by name; of several those that load: a kept .ckpt does not hide its conversion."""
        table: dict[str, list[ModelFile]] = {}
        for path in model_paths(self._root, kind):
            file = self._describe(path, kind)
            if file is not None:
                table.setdefault(file.name, []).append(file)
        return {
            name: [file for file in files if file.family] or files for name, files in table.items()
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
        if kind == "checkpoint" and version not in self._bases:
            self._bases[version] = _base_or_none(path)
        family, size_px = self._bases.get(version) or (None, 0)
        return ModelFile(
            name=path.name if folder else path.stem,
            kind=kind,
            path=path,
            size_bytes=size_bytes,
            modified_ns=modified_ns,
            family=family,
            native_size_px=size_px,
        )


def _base_or_none(path: Path) -> _Base | None:
    try:
        return _read_base(path)
    except (CorruptFile, FileUnavailable) as exc:
        logger.warning("checkpoint left out: %s", exc, extra={"action": "list_checkpoint"})
        return None


def _read_base(path: Path) -> _Base:
    if path.is_dir():
        family = folder_family(path)
        return family, folder_native_size_px(path, family)
    header = read_header(path)
    family = family_of(header)
    return family, native_size_px(header, family)
