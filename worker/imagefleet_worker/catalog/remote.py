"""Models of a bucket: listed, inspected by their headers, and fetched once per host."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile

from imagefleet_shared.errors import FileUnavailable, ImagefleetError
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.status import Stage
from imagefleet_worker.catalog.bucket import LISTING_TTL_S, ModelBucket, RemoteFile
from imagefleet_worker.catalog.disk_cache import DiskCache
from imagefleet_worker.catalog.download import download, downloaded_bytes
from imagefleet_worker.catalog.listing import Kind, diffusers_folders, model_kind
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.weights.safetensors_header import is_safetensors

FetchProgress = Callable[[Stage, int, int], None]
"""Called with the stage, megabytes downloaded and megabytes in total; may raise to cancel."""

_MB = 10**6
_MAX_CONCURRENT_PEEKS = 8


def null_progress(stage: Stage, step: int, steps: int) -> None:
    """Report nothing."""


def open_remote(settings: WorkerSettings, storage: StorageSettings) -> "RemoteModels | None":
    """The bucket that the settings name; None if there is none.

    Raises:
        ImagefleetError: `models_url` is not `s3://bucket[/prefix]`.
    """
    if settings.models_url is None:
        return None
    disk = DiskCache(settings.model_cache_dir, int(settings.model_disk_gb * 1e9))
    return RemoteModels(ModelBucket(storage, settings.models_url), disk)


class RemoteModels:
    """The models of a bucket, cached on this host's disk; thread-safe.

    Args:
        bucket: source of the files.
        disk: cache that they are fetched to.
    """

    def __init__(self, bucket: ModelBucket, disk: DiskCache) -> None:
        self._bucket = bucket
        self._disk = disk

    def files(self, kind: Kind, max_age_s: float = LISTING_TTL_S) -> list[ModelFile]:
        """The models of a kind, by A1111's folder identity; without files of diffusers folders.

        Their metadata is not filled in.

        Raises:
            StorageUnavailable: the bucket is unavailable and was never listed.
        """
        listing = self._bucket.listing(max_age_s)
        folders = diffusers_folders(remote.path for remote in listing)
        return [
            ModelFile(
                name=remote.path.stem,
                kind=kind,
                path=self._local_path(remote),
                size_bytes=remote.size_bytes,
                modified_ns=remote.modified_ns,
                metadata=None,
                remote=remote,
            )
            for remote in listing
            if model_kind(remote.path) == kind and not folders & set(remote.path.parents)
        ]

    def refuse_folder(self, name: str) -> None:
        """Refuse a diffusers folder of the bucket, if one has that name.

        Raises:
            FileUnavailable: there is one; only single files are supported in a bucket.
        """
        for folder in diffusers_folders(file.path for file in self._bucket.listing()):
            if folder.name == name:
                raise FileUnavailable(
                    f"{self.url(folder)} is a diffusers folder, and of a bucket only single files "
                    "are read: put it into IMAGEFLEET_MODELS_DIR, or convert it"
                )

    def url(self, path: PurePosixPath) -> str:
        """The URL of a path below the prefix."""
        return f"{self._bucket.url}/{path}"

    def peek(self, file: ModelFile) -> Path:
        """A local file with enough content to read the metadata: the header, if it has one.

        Files without one are fetched: embeddings, and LoRAs and face restorers that are pickles.

        Raises as `fetch`.
        """
        remote = file.remote
        if remote is None or file.kind in ("upscaler", "face_part"):
            return file.path
        if file.kind == "embedding":
            return self.fetch(file)
        header = self._header(remote)
        if file.kind in ("lora", "face") and not is_safetensors(header):
            return self.fetch(file)
        return header

    def peek_all(self, files: Sequence[ModelFile]) -> list[Path | ImagefleetError]:
        """What `peek` returns or raises for each file; runs several concurrently."""
        with ThreadPoolExecutor(_MAX_CONCURRENT_PEEKS, thread_name_prefix="peek") as pool:
            return list(pool.map(self._peek_or_error, files))

    def fetch(self, file: ModelFile, report: FetchProgress = null_progress) -> Path:
        """The verified file on local disk; it is downloaded once per host.

        Args:
            file: of this bucket.
            report: called with the progress; if it raises, waiting or downloading stops, and the
                next call resumes the download.

        Raises:
            CorruptFile: the file does not match its published checksum.
            StorageUnavailable: the bucket is unavailable, or the object was replaced or removed.
            FileUnavailable: the object is unreadable, or the local disk is full or failing.
        """
        with self.pinned(file, report) as path:
            return path

    @contextmanager
    def pinned(self, file: ModelFile, report: FetchProgress = null_progress) -> Generator[Path]:
        """As `fetch`; the file is not evicted until the context ends."""
        remote = file.remote
        assert remote is not None, "local files need no fetching"
        version, path = self._version(remote), self._local_path(remote)
        part = path.with_name(f".{path.name}.part")

        def report_progress() -> None:
            report("load", downloaded_bytes(part) // _MB, remote.size_bytes // _MB)

        with self._disk.pinned(version):
            if not path.exists():
                with self._disk.fill_lock(version, report_progress):
                    self._fill(remote, part, report_progress)
            yield path

    def sha256(self, file: ModelFile) -> str | None:
        """SHA-256 of the fetched file in hexadecimal; None if it is not on this host."""
        try:
            return _digest_path(file.path).read_text()
        except FileNotFoundError:
            return None

    def _peek_or_error(self, file: ModelFile) -> Path | ImagefleetError:
        try:
            return self.peek(file)
        except ImagefleetError as exc:
            return exc

    def _fill(self, file: RemoteFile, part: Path, on_progress: Callable[[], None]) -> None:
        path = self._local_path(file)
        if path.exists():
            return
        with self._disk.reserved(self._version(file), file.size_bytes):
            _digest_path(path).write_text(download(self._bucket, file, part, on_progress))
            part.rename(path)

    def _local_path(self, file: RemoteFile) -> Path:
        """The path of the version once it is fetched."""
        return self._disk.folder(self._version(file)) / file.path.name

    def _header(self, file: RemoteFile) -> Path:
        """A sparse file with the object's name and size that contains only its header."""
        version = self._version(file)
        path = self._disk.folder(version) / ".header" / file.path.name
        complete = self._local_path(file)
        if complete.exists() or path.exists():
            return complete if complete.exists() else path
        content = self._bucket.read_header(file)
        with self._disk.pinned(version), self._disk.os_errors_translated():
            path.parent.mkdir(exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
                temporary.write(content)
                temporary.truncate(file.size_bytes)
            Path(temporary.name).rename(path)
        return path

    def _version(self, file: RemoteFile) -> str:
        identity = f"{self.url(file.path)}\0{file.etag}\0{file.size_bytes}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _digest_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")
