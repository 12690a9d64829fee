"""The models of a worker, by name: what is in its model folder and its bucket, and nothing else.

Read are the subfolders ``checkpoints``, ``loras``, ``embeddings``, ``upscalers`` and ``faces``, and
A1111's own names for them, at any depth; upper and lower case count the same. A model's name is its
file's name without the suffix, or the name of a diffusers folder. Names are looked up in a listing
and never become part of a path.
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
    """Finds models under one folder, which every call sees as it is now, and in a bucket.

    A name means one file: one in the folder and one in the bucket are two. Links that lead out of
    the folder, and links to folders, are ignored. Headers and digests are read once for each
    version of a file. Safe to use from several threads.

    Args:
        root: the model folder. Beside a bucket it need not be there.
        remote: what is in the bucket; None: there is none.
    """

    def __init__(self, root: Path, remote: RemoteModels | None = None) -> None:
        self._root = root
        self._remote = remote
        self._fetched: dict[tuple[Kind, str], Path] = {}
        self._metadata = MetadataReader(remote)
        self._digests: dict[Version, str] = {}
        self.read_ahead = ReadAhead(self.sha256)

    def listed(self, kind: Kind) -> tuple[ModelFile, ...]:
        """The models of a kind that load here, by name; ambiguous names are left out.

        Raises:
            FileUnavailable: the model folder cannot be read.
            StorageUnavailable: the bucket is away and was never seen.
        """
        return tuple(file for file in self.named(kind) if not file.fault)

    def named(self, kind: Kind, family: Family | None = None) -> tuple[ModelFile, ...]:
        """As `listed`, and those of which it is not known whether they load: see their `fault`.

        With a family, files for another are passed over.
        """
        table: dict[str, list[ModelFile]] = {}
        for file in self._metadata.with_metadata(self._files(kind)):
            fits = family is None or file.family in (None, family)
            if fits and (file.metadata or file.fault) and not _NOT_A_NAME.search(file.name):
                table.setdefault(file.name, []).append(file)
        return tuple(self._only(files) for _, files in sorted(table.items()))

    def find(self, kind: NamedKind, name: str) -> ModelFile:
        """The model of that name, or the one LoRA that was trained under it.

        Raises:
            UnknownCheckpoint, UnknownLora, UnknownEmbedding, UnknownUpscaler, UnknownFaceRestorer:
                there is none, or the name could be a path.
            CorruptFile: it is damaged, unsupported, or a pickle where none is read; the message
                says how to convert that.
            FileUnavailable: the model folder or the file cannot be read, or it is a diffusers
                folder in the bucket.
            StorageUnavailable: the bucket is away and was never seen, or does not give the file.
            WorkerFailure: two files have that name.
        """
        named = [] if _NOT_A_NAME.search(name) else self._find(kind, name)
        files = named or find_by_alias(self.listed(kind), name)
        if not files:
            raise _UNKNOWN[kind](name, [known.name for known in self.listed(kind)])
        file = self._only(files)
        if file.fault:
            raise file.fault
        if file.metadata is None:
            # Read again for the reason; a file that was mended in between is fine.
            file = self._metadata.reread(file)
        return file

    def fetch(self, file: ModelFile, report: FetchProgress = null_progress) -> Path:
        """Where the file lies, fetched from the bucket if need be; see `RemoteModels.fetch`."""
        with self.pinned([file], report):
            return file.path

    @contextmanager
    def pinned(
        self, files: Iterable[ModelFile], report: FetchProgress = null_progress
    ) -> Generator[None]:
        """Fetch files, and have them on local disk until the context ends; raises as `fetch`."""
        with ExitStack() as kept:
            for file in files:
                if self._remote and file.remote:
                    kept.enter_context(self._remote.pinned(file, report))
                self._fetched[file.kind, file.name] = file.path
            yield

    def fetched(self, kind: NamedKind, name: str) -> Path:
        """Where the file of that name lies that was fetched last; it waits for no network.

        For the engine's thread, which draws with what jobs keep; raises as `find`.
        """
        return self._fetched.get((kind, name)) or self.find(kind, name).path

    def sha256(self, file: ModelFile) -> str | None:
        """The file's SHA-256 in hexadecimal, read once for each version; None for a folder.

        Raises:
            FileUnavailable: the file cannot be read.
            StorageUnavailable, CorruptFile: it must be fetched, and `fetch` fails.
        """
        if file.version in self._digests:
            return self._digests[file.version]
        path = self.fetch(file)
        if path.is_dir():
            return None
        known = self._remote.sha256(file) if self._remote and file.remote else None
        self._digests[file.version] = known or sha256_of(path)
        return self._digests[file.version]

    def known_sha256(self, file: ModelFile) -> str | None:
        """The file's SHA-256 if it was asked for before; reads nothing."""
        return self._digests.get(file.version)

    def _find(self, kind: Kind, name: str) -> list[ModelFile]:
        named = [file for file in self._files(kind) if file.name == name]
        if not named and self._remote:
            # It may have come since the bucket was listed.
            named = [file for file in self._remote.files(kind, 0) if file.name == name]
        if not named and self._remote and kind == "checkpoint":
            self._remote.refuse_folder(name)
        return _loading(self._metadata.with_metadata(named))

    def _files(self, kind: Kind) -> list[ModelFile]:
        """Without their facts."""
        paths = model_paths(self._root, kind) if not self._remote or self._root.exists() else []
        local = [file for path in paths if (file := _local(path, kind))]
        return [*local, *(self._remote.files(kind) if self._remote else ())]

    def _place(self, file: ModelFile) -> str:
        if self._remote and file.remote:
            return self._remote.url(file.remote.path)
        return str(file.path.relative_to(self._root.resolve()))

    def _only(self, files: Sequence[ModelFile]) -> ModelFile:
        """Of files with one name, the one; it has a fault where there are several."""
        if len(files) == 1:
            return files[0]
        kind, name = files[0].kind, files[0].name
        places = " and ".join(self._place(file) for file in files)
        fault = f"several {kind}s are named {name!r}: {places}; rename all but one"
        return replace(files[0], metadata=None, fault=WorkerFailure(fault))


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


def _loading(files: list[ModelFile]) -> list[ModelFile]:
    """Of several, those that load or may: a kept .ckpt does not hide its conversion."""
    return [file for file in files if file.metadata or file.fault] or files
