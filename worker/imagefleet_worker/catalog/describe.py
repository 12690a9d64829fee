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
from imagefleet_worker.catalog.model_file import Facts, ModelFile, Version
from imagefleet_worker.catalog.remote import RemoteModels

logger = logging.getLogger(__name__)


class Describer:
    """Fills in facts; safe to use from several threads.

    Args:
        remote: where files of a bucket are read.
    """

    def __init__(self, remote: RemoteModels | None) -> None:
        self._remote = remote
        self._facts: dict[Version, Facts | None] = {}
        self._warned: set[Version] = set()

    def described(self, files: Sequence[ModelFile]) -> list[ModelFile]:
        """The files with their facts; with neither facts nor a fault: they do not load here.

        What could not be read has a fault, and is read again the next time.
        """
        unknown = [file for file in files if file.version not in self._facts]
        faults: dict[Version, ImagefleetError] = {}
        for file, peeked in zip(unknown, self._peeked(unknown), strict=True):
            try:
                self._facts[file.version] = _facts_of(peeked, file)
            except CorruptFile as exc:
                self._facts[file.version] = None
                self._warn(file, exc)
            except (FileUnavailable, StorageUnavailable) as exc:
                faults[file.version] = exc
                self._warn(file, exc)
        return [
            replace(file, facts=self._facts.get(file.version), fault=faults.get(file.version))
            for file in files
        ]

    def again(self, file: ModelFile) -> ModelFile:
        """A file that does not load with its facts, if it was mended.

        Raises:
            CorruptFile: it was not.
            FileUnavailable, StorageUnavailable: it cannot be read.
        """
        [peeked] = self._peeked([file])
        facts = self._facts[file.version] = _facts_of(peeked, file)
        return replace(file, facts=facts)

    def _peeked(self, files: Sequence[ModelFile]) -> Sequence[Path | ImagefleetError]:
        """Where their facts are read from, or why they cannot be."""
        if self._remote is None or not files:
            return [file.path for file in files]
        return self._remote.peek_all(files)

    def _warn(self, file: ModelFile, error: ImagefleetError) -> None:
        if file.version not in self._warned:
            self._warned.add(file.version)
            logger.warning("%s left out: %s", file.kind, error, extra={"action": "list_model"})


def _facts_of(peeked: Path | ImagefleetError, file: ModelFile) -> Facts:
    if isinstance(peeked, ImagefleetError):
        raise peeked
    # Imported for the first file: it loads torch, and a worker without model files needs none.
    from imagefleet_worker.catalog.metadata import facts_of

    return facts_of(peeked, file.kind)
