"""Adds metadata to model files, read once for each version of a file."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imagefleet_shared.errors import (
    CorruptFile,
    FileUnavailable,
    ImagefleetError,
    StorageUnavailable,
)
from imagefleet_worker.catalog.model_file import ModelFile, ModelMetadata, Version
from imagefleet_worker.catalog.remote import RemoteModels

logger = logging.getLogger(__name__)


class MetadataReader:
    """Reads and caches the metadata of model files; thread-safe.

    Args:
        remote: reads files of a bucket; None without one.
    """

    def __init__(self, remote: RemoteModels | None) -> None:
        self._remote = remote
        self._known: dict[Version, ModelMetadata | None] = {}
        self._warned: set[Version] = set()

    def with_metadata(self, files: Sequence[ModelFile]) -> list[ModelFile]:
        """The files with their metadata; those with neither metadata nor an error are unsupported.

        Files that could not be read have an error, and are retried on the next call.
        """
        unknown = [file for file in files if file.version not in self._known]
        errors: dict[Version, ImagefleetError] = {}
        for file, peeked in zip(unknown, self._peek(unknown), strict=True):
            try:
                self._known[file.version] = _read(peeked, file)
            except CorruptFile as exc:
                self._known[file.version] = None
                self._warn(file, exc)
            except (FileUnavailable, StorageUnavailable) as exc:
                errors[file.version] = exc
                self._warn(file, exc)
        return [
            replace(file, metadata=self._known.get(file.version), error=errors.get(file.version))
            for file in files
        ]

    def reread(self, file: ModelFile) -> ModelFile:
        """Read the metadata again, in case an unsupported file was repaired.

        Raises:
            CorruptFile: it still does not load.
            FileUnavailable, StorageUnavailable: it cannot be read.
        """
        [peeked] = self._peek([file])
        metadata = self._known[file.version] = _read(peeked, file)
        return replace(file, metadata=metadata)

    def _peek(self, files: Sequence[ModelFile]) -> Sequence[Path | ImagefleetError]:
        """Paths to read the metadata from, or the errors that prevent it."""
        if self._remote is None or not files:
            return [file.path for file in files]
        return self._remote.peek_all(files)

    def _warn(self, file: ModelFile, error: ImagefleetError) -> None:
        if file.version not in self._warned:
            self._warned.add(file.version)
            logger.warning("%s left out: %s", file.kind, error, extra={"action": "list_model"})


def _read(peeked: Path | ImagefleetError, file: ModelFile) -> ModelMetadata:
    if isinstance(peeked, ImagefleetError):
        raise peeked
    # Imported on first use: it loads torch, which a worker without model files does not need.
    from imagefleet_worker.catalog.metadata import read_metadata

    return read_metadata(peeked, file.kind)
