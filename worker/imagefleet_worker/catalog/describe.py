"""What models say of themselves, read once for each version of a file."""

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
    """Fills in facts; safe to use from several threads.

    Args:
        remote: where files of a bucket are read.
    """

    def __init__(self, remote: RemoteModels | None) -> None:
        self._remote = remote
        self._known: dict[Version, ModelMetadata | None] = {}
        self._warned: set[Version] = set()

    def with_metadata(self, files: Sequence[ModelFile]) -> list[ModelFile]:
        """The files with their facts; with neither facts nor a fault: they do not load here.

        What could not be read has a fault, and is read again the next time.
        """
        unknown = [file for file in files if file.version not in self._known]
        faults: dict[Version, ImagefleetError] = {}
        for file, peeked in zip(unknown, self._peek(unknown), strict=True):
            try:
                self._known[file.version] = _read(peeked, file)
            except CorruptFile as exc:
                self._known[file.version] = None
                self._warn(file, exc)
            except (FileUnavailable, StorageUnavailable) as exc:
                faults[file.version] = exc
                self._warn(file, exc)
        return [
            replace(file, metadata=self._known.get(file.version), fault=faults.get(file.version))
            for file in files
        ]

    def reread(self, file: ModelFile) -> ModelFile:
        """A file that does not load with its facts, if it was mended.

        Raises:
            CorruptFile: it was not.
            FileUnavailable, StorageUnavailable: it cannot be read.
        """
        [peeked] = self._peek([file])
        metadata = self._known[file.version] = _read(peeked, file)
        return replace(file, metadata=metadata)

    def _peek(self, files: Sequence[ModelFile]) -> Sequence[Path | ImagefleetError]:
        """Where their facts are read from, or why they cannot be."""
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
    # Imported for the first file: it loads torch, and a worker without model files needs none.
    from imagefleet_worker.catalog.metadata import read_metadata

    return read_metadata(peeked, file.kind)
