"""Looks up a worker's models by name, in its model folder and its bucket only.

The subfolders ``checkpoints``, ``loras``, ``embeddings``, ``upscalers`` and ``faces``, and A1111's
names for them, are searched recursively; case is ignored. A model's name is its file's name without
the suffix, or the name of a diffusers folder. Names are looked up in a listing and never become
part of a path.
"""

import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from imagefleet_shared.errors import (
    FileUnavailable,
    UnknownCheckpoint,
    UnknownEmbedding,
    UnknownFaceRestorer,
    UnknownLora,
    UnknownUpscaler,
    WorkerFailure,
)
from imagefleet_worker.catalog.aliases import find_by_alias
from imagefleet_worker.catalog.describe import MetadataReader
from imagefleet_worker.catalog.listing import Kind, NamedKind, model_paths
from imagefleet_worker.catalog.model_file import ModelFile, Version
from imagefleet_worker.catalog.read_ahead import ReadAhead, sha256_of
from imagefleet_worker.catalog.remote import FetchProgress, RemoteModels, null_progress
from imagefleet_worker.weights.families import Family

_NOT_A_NAME = re.compile(r"[/\\\0]|\.\.|^[A-Za-z]:")
_UNKNOWN = {
    "checkpoint": UnknownCheckpoint,
    "lora": UnknownLora,
    "embedding": UnknownEmbedding,
    "upscaler": UnknownUpscaler,
    "face": UnknownFaceRestorer,
}


class ModelStore:
    """Finds models in a folder, which is scanned on every call, and in a bucket.

    Names must be unique across the folder and the bucket. Links that lead out of the folder, and
    links to folders, are ignored. Headers and digests are read once for each version of a file.
    Thread-safe.

    Args:
        root: the model folder; with a bucket it need not exist.
        remote: the models of the bucket; None without one.
    """

    def __init__(self, root: Path, remote: RemoteModels | None = None) -> None:
        self._root = root
        self._remote = remote
        self._fetched: dict[tuple[Kind, str], Path] = {}
        self._metadata = MetadataReader(remote)
        self._digests: dict[Version, str] = {}
        self.read_ahead = ReadAhead(self.sha256)

    def list_models(self, kind: Kind) -> tuple[ModelFile, ...]:
        """The usable models of a kind, sorted by name; ambiguous names are left out.

        Raises:
            FileUnavailable: the model folder cannot be read.
            StorageUnavailable: the bucket is unavailable and was never listed.
        """
        return tuple(file for file in self.list_candidates(kind) if not file.error)

    def list_candidates(self, kind: Kind, family: Family | None = None) -> tuple[ModelFile, ...]:
        """As `list_models`, and also the models with an `error`, which may be valid.

        With a family, files known to be for another one are skipped.
        """
        by_name: dict[str, list[ModelFile]] = {}
        for file in self._metadata.with_metadata(self._files(kind)):
            fits = family is None or file.family in (None, family)
            if fits and (file.metadata or file.error) and not _NOT_A_NAME.search(file.name):
                by_name.setdefault(file.name, []).append(file)
        return tuple(self._single(files) for _, files in sorted(by_name.items()))

    def find(self, kind: NamedKind, name: str) -> ModelFile:
        """The model of that name, or the only LoRA with that alias.

        Raises:
            UnknownCheckpoint, UnknownLora, UnknownEmbedding, UnknownUpscaler, UnknownFaceRestorer:
                there is none, or the name could be a path.
            CorruptFile: it is damaged, unsupported, or a pickle where pickles are refused; the
                message says how to convert it.
            FileUnavailable: the model folder or the file cannot be read, or it is a diffusers
                folder in the bucket.
            StorageUnavailable: the bucket is unavailable and was never listed, or does not return
                the file.
            WorkerFailure: two files have that name.
        """
        named = [] if _NOT_A_NAME.search(name) else self._find(kind, name)
        files = named or find_by_alias(self.list_models(kind), name)
        if not files:
            raise _UNKNOWN[kind](name, [known.name for known in self.list_models(kind)])
        file = self._single(files)
        if file.error:
            raise file.error
        if file.metadata is None:
            # Read again to raise the reason; a file that was repaired in between is fine.
            file = self._metadata.reread(file)
        return file

    def fetch(self, file: ModelFile, report: FetchProgress = null_progress) -> Path:
        """The file's local path, fetched from the bucket if needed; see `RemoteModels.fetch`."""
        with self.pinned([file], report):
            return file.path

    @contextmanager
    def pinned(
        self, files: Iterable[ModelFile], report: FetchProgress = null_progress
    ) -> Generator[None]:
        """Fetch files and prevent their eviction until the context ends; raises as `fetch`."""
        with ExitStack() as pins:
            for file in files:
                if self._remote and file.remote:
                    pins.enter_context(self._remote.pinned(file, report))
                self._fetched[file.kind, file.name] = file.path
            yield

    def local_path(self, kind: NamedKind, name: str) -> Path:
        """The path of the last fetched file of that name, without network access.

        For the engine's thread, which uses files that jobs have pinned; raises as `find`.
        """
        return self._fetched.get((kind, name)) or self.find(kind, name).path

    def sha256(self, file: ModelFile) -> str | None:
        """The file's SHA-256 in hexadecimal, read once for each version; None for a folder.

        Raises:
            FileUnavailable: the file cannot be read.
            StorageUnavailable, CorruptFile: it had to be fetched, and `fetch` failed.
        """
        if file.version in self._digests:
            return self._digests[file.version]
        path = self.fetch(file)
        if path.is_dir():
            return None
        known = self._remote.sha256(file) if self._remote and file.remote else None
        self._digests[file.version] = known or sha256_of(path)
        return self._digests[file.version]

    def cached_sha256(self, file: ModelFile) -> str | None:
        """The file's SHA-256 if it was computed before; reads nothing."""
        return self._digests.get(file.version)

    def _find(self, kind: Kind, name: str) -> list[ModelFile]:
        named = [file for file in self._files(kind) if file.name == name]
        if not named and self._remote:
            # It may have been added since the bucket was listed.
            named = [file for file in self._remote.files(kind, 0) if file.name == name]
        if not named and self._remote and kind == "checkpoint":
            self._remote.refuse_folder(name)
        return _prefer_loadable(self._metadata.with_metadata(named))

    def _files(self, kind: Kind) -> list[ModelFile]:
        """Local and remote files, without metadata."""
        paths = model_paths(self._root, kind) if not self._remote or self._root.exists() else []
        local = [file for path in paths if (file := _local(path, kind))]
        return [*local, *(self._remote.files(kind) if self._remote else ())]

    def _location(self, file: ModelFile) -> str:
        if self._remote and file.remote:
            return self._remote.url(file.remote.path)
        return str(file.path.relative_to(self._root.resolve()))

    def _single(self, files: Sequence[ModelFile]) -> ModelFile:
        """The only file of a name; with an error if there are several."""
        if len(files) == 1:
            return files[0]
        kind, name = files[0].kind, files[0].name
        locations = " and ".join(self._location(file) for file in files)
        message = f"several {kind}s are named {name!r}: {locations}; rename all but one"
        return replace(files[0], metadata=None, error=WorkerFailure(message))


def _local(path: Path, kind: Kind) -> ModelFile | None:
    folder = path.is_dir()
    try:
        stats = [part.stat() for part in (path.rglob("*.safetensors") if folder else [path])]
    except FileNotFoundError:
        # Deleted since it was listed.
        return None
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc
    return ModelFile(
        name=path.name if folder else path.stem,
        kind=kind,
        path=path,
        size_bytes=sum(stat.st_size for stat in stats),
        modified_ns=max((stat.st_mtime_ns for stat in stats), default=0),
        metadata=None,
    )


def _prefer_loadable(files: list[ModelFile]) -> list[ModelFile]:
    """The loadable files if there are any: a .ckpt must not hide its conversion."""
    return [file for file in files if file.metadata or file.error] or files
