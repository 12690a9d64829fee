"""Models of a bucket: described by their first bytes, fetched once per host, checked, kept."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile

from imagefleet_shared.errors import FileUnavailable, ImagefleetError
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.status import Stage
from imagefleet_worker.catalog.bucket import LISTING_S, ModelBucket, RemoteFile
from imagefleet_worker.catalog.disk_cache import DiskCache
from imagefleet_worker.catalog.download import bytes_there, download
from imagefleet_worker.catalog.listing import Kind, diffusers_folders, model_kind
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.weights.safetensors_header import is_safetensors

FetchProgress = Callable[[Stage, int, int], None]
"""Takes the stage, and the megabytes that are there and that there will be; raises to give up."""

_MB = 10**6
_PEEKS_AT_ONCE = 8


def null_progress(stage: Stage, step: int, steps: int) -> None:
    """Tells nobody."""


def open_remote(settings: WorkerSettings, storage: StorageSettings) -> "RemoteModels | None":
    """The bucket that the settings name; None where they name none.

    Raises:
        ImagefleetError: `models_url` is no `s3://bucket[/prefix]`.
    """
    if settings.models_url is None:
        return None
    disk = DiskCache(settings.model_cache_dir, int(settings.model_disk_gb * 1e9))
    return RemoteModels(ModelBucket(storage, settings.models_url), disk)


class RemoteModels:
    """The models of a bucket that one host uses; safe to share between threads.

    Args:
        bucket: where they are.
        disk: where they are fetched to.
    """

    def __init__(self, bucket: ModelBucket, disk: DiskCache) -> None:
        self._bucket = bucket
        self._disk = disk

    def files(self, kind: Kind, max_age_s: float = LISTING_S) -> list[ModelFile]:
        """The objects that are models of a kind by A1111's folders; no parts of diffusers folders.

        Their facts are not filled in.

        Raises:
            StorageUnavailable: the bucket is away and was never seen.
        """
        listing = self._bucket.listing(max_age_s)
        folders = diffusers_folders(remote.path for remote in listing)
        return [
            ModelFile(
                name=remote.path.stem,
                kind=kind,
                path=self._place(remote),
                size_bytes=remote.size_bytes,
                modified_ns=remote.modified_ns,
                metadata=None,
                remote=remote,
            )
            for remote in listing
            if model_kind(remote.path) == kind and not folders & set(remote.path.parents)
        ]

    def refuse_folder(self, name: str) -> None:
        """Say why a diffusers folder of the bucket is no model, if one has that name.

        Raises:
            FileUnavailable: one has.
        """
        for folder in diffusers_folders(file.path for file in self._bucket.listing()):
            if folder.name == name:
                raise FileUnavailable(
                    f"{self.url(folder)} is a diffusers folder, and of a bucket only single files "
                    "are read: put it into IMAGEFLEET_MODELS_DIR, or convert it"
                )

    def url(self, path: PurePosixPath) -> str:
        """Of what lies below the prefix."""
        return f"{self._bucket.url}/{path}"

    def peek(self, file: ModelFile) -> Path:
        """A file with all that the model's facts are read from: its header, if it has one.

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
        """What `peek` gives or raises for each; several at once, when a whole bucket is new."""
        with ThreadPoolExecutor(_PEEKS_AT_ONCE, thread_name_prefix="peek") as pool:
            return list(pool.map(self._peek_or_error, files))

    def fetch(self, file: ModelFile, report: FetchProgress = null_progress) -> Path:
        """The file on local disk, whole and checked; whoever comes first fetches it for the host.

        Args:
            file: of this bucket.
            tell: hears how it comes along; what it raises ends the waiting or the fetching, and
                what was fetched so far is gone on with by the next.

        Raises:
            CorruptFile: it is not what is published of it.
            StorageUnavailable: the bucket is away, or the object was replaced or removed.
            FileUnavailable: the object is sealed, or the local disk full or out of order.
        """
        with self.pinned(file, report) as path:
            return path

    @contextmanager
    def pinned(self, file: ModelFile, report: FetchProgress = null_progress) -> Generator[Path]:
        """The file on local disk as `fetch` gives it, and there until the context ends."""
        remote = file.remote
        assert remote is not None, "local files need no fetching"
        version, path = self._version(remote), self._place(remote)
        part = path.with_name(f".{path.name}.part")

        def told() -> None:
            report("load", bytes_there(part) // _MB, remote.size_bytes // _MB)

        with self._disk.pinned(version):
            if not path.exists():
                with self._disk.filling(version, told):
                    self._fill(remote, part, told)
            yield path

    def sha256(self, file: ModelFile) -> str | None:
        """Of the fetched file, hexadecimal; None while it is not on this host."""
        try:
            return _digest_of(file.path).read_text()
        except FileNotFoundError:
            return None

    def _peek_or_error(self, file: ModelFile) -> Path | ImagefleetError:
        try:
            return self.peek(file)
        except ImagefleetError as exc:
            return exc

    def _fill(self, file: RemoteFile, part: Path, on_progress: Callable[[], None]) -> None:
        path = self._place(file)
        if path.exists():
            return
        with self._disk.reserved(self._version(file), file.size_bytes):
            _digest_of(path).write_text(download(self._bucket, file, part, on_progress))
            part.rename(path)

    def _place(self, file: RemoteFile) -> Path:
        """Where the version lies once it is fetched."""
        return self._disk.folder(self._version(file)) / file.path.name

    def _header(self, file: RemoteFile) -> Path:
        """A sparse file of the object's name and size, of which only its header is filled in."""
        version = self._version(file)
        path = self._disk.folder(version) / ".header" / file.path.name
        whole = self._place(file)
        if whole.exists() or path.exists():
            return whole if whole.exists() else path
        content = self._bucket.read_header(file)
        with self._disk.pinned(version), self._disk.os_errors_translated():
            path.parent.mkdir(exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, delete=False) as unnamed:
                unnamed.write(content)
                unnamed.truncate(file.size_bytes)
            Path(unnamed.name).rename(path)
        return path

    def _version(self, file: RemoteFile) -> str:
        names = f"{self.url(file.path)}\0{file.etag}\0{file.size_bytes}"
        return hashlib.sha256(names.encode()).hexdigest()[:32]


def _digest_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")
