"""Reads files ahead: hashes them, and warms the page cache for the load that follows."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from imagefleet_shared.errors import FileUnavailable, ImagefleetError
from imagefleet_worker.catalog.model_file import ModelFile

logger = logging.getLogger(__name__)


class ReadAhead:
    """Reads checkpoints into the page cache on the threads of queued jobs.

    It only reads and hashes, which does not slow down the engine's thread.

    Args:
        sha256: hashes a file, or returns the cached hash.
    """

    def __init__(self, sha256: Callable[[ModelFile], str | None]) -> None:
        self._sha256 = sha256
        self._loaded: set[ModelFile] = set()
        self._being_read: set[ModelFile] = set()

    def mark_loaded(self, file: ModelFile) -> None:
        """Record that a checkpoint is in memory, so that it is not read."""
        self._loaded.add(file)

    def mark_unloaded(self, file: ModelFile) -> None:
        """Record that a checkpoint is no longer in memory."""
        self._loaded.discard(file)

    def read(self, files: Iterable[ModelFile]) -> None:
        """Read the checkpoints among the files that are not loaded; errors are only logged."""
        for file in files:
            if file.kind == "checkpoint" and file not in self._loaded | self._being_read:
                self._being_read.add(file)
                try:
                    self._read(file)
                except ImagefleetError as exc:
                    # If it matters, loading the file raises the same error.
                    logger.warning("%s is not read ahead: %s", file.name, exc)
                finally:
                    self._being_read.discard(file)

    def _read(self, file: ModelFile) -> None:
        weights = file.path.rglob("*.safetensors") if file.path.is_dir() else [file.path]
        for path in weights:
            load_into_page_cache(path)
        self._sha256(file)


def sha256_of(path: Path) -> str:
    """SHA-256 in hexadecimal.

    Raises:
        FileUnavailable: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc


def load_into_page_cache(path: Path) -> None:
    """Ask the operating system to read a file into its page cache; does not wait for it.

    Raises:
        FileUnavailable: the file cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc
