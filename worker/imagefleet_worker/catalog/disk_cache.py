"""Fetched models on local disk, shared by all workers of a host."""

import fcntl
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from time import sleep, time
from typing import TextIO

from imagefleet_shared.errors import FileUnavailable
from imagefleet_worker import metrics

logger = logging.getLogger(__name__)

LOCK_POLL_S = 0.1
SPARED_S = 120
"""What was used so lately stays though the budget be exceeded: it may be wanted next."""

_RESERVED = ".reserved"
"""A file in a version's folder, empty on disk and as long as the version will be."""


class DiskCache:
    """Folders of one model version each, least recently used out first.

    A folder's own time is when it was used last. Locks are files of their own, taken by `flock`, so
    that they end with their process; they hold between processes and between threads. A version has
    two: shared by who uses it against who removes it, and between those who would fill it.

    Args:
        root: of the cache; the same for all workers of a host.
        budget_bytes: for all versions together; one alone may be larger.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._versions = root / "versions"
        self._locks = root / "locks"
        self._budget_bytes = budget_bytes

    def folder(self, version: str) -> Path:
        """Where a version lies, if it does."""
        return self._versions / version

    @contextmanager
    def pinned(self, version: str) -> Generator[None]:
        """Keep everybody from removing the folder of a version, as others may at the same time.

        It is made if need be, and counts as used.

        Raises:
            FileUnavailable: the disk is full, or cannot be read or written.
        """
        with self._lock_file(version) as lock:
            with self.os_errors_translated():
                # Waits where it is just being removed.
                fcntl.flock(lock, fcntl.LOCK_SH)
                folder = self.folder(version)
                folder.mkdir(parents=True, exist_ok=True)
                os.utime(folder)
            yield

    @contextmanager
    def filling(self, version: str, waiting: Callable[[], None]) -> Generator[None]:
        """Be the only one who fills the folder of a version, which the caller has `kept`.

        Args:
            waiting: called now and then while another holds the lock; it may raise.

        Raises:
            FileUnavailable: the disk is full, or cannot be read or written, in the body too.
        """
        with self._lock_file(f"{version}.fill") as lock, self.os_errors_translated():
            while not _taken(lock):
                waiting()
                sleep(LOCK_POLL_S)
            yield

    @contextmanager
    def os_errors_translated(self) -> Generator[None]:
        """Say what the operating system refuses in the body as `FileUnavailable`."""
        try:
            yield
        except OSError as exc:
            root = self._versions.parent
            text = f"the model cache {root} cannot be read or written: {exc.strerror or exc}"
            raise FileUnavailable(text) from exc

    @contextmanager
    def reserved(self, version: str, size_bytes: int) -> Generator[None]:
        """Have room for a version that is being filled: others count all its bytes in the body.

        Versions that were not used for longest are removed until it fits the budget. Where its
        process is killed in the body, it counts so until it is filled or removed.

        Args:
            size_bytes: of the version, with what lies in its folder already.

        Raises:
            FileUnavailable: the disk is full, or cannot be read or written.
        """
        reserved = self.folder(version) / _RESERVED
        with self._lock_file("room") as lock:
            with self.os_errors_translated():
                fcntl.flock(lock, fcntl.LOCK_EX)
                reserved.touch()
                os.truncate(reserved, size_bytes)
            self._make_room()
        try:
            yield
        finally:
            reserved.unlink(missing_ok=True)

    def _make_room(self) -> None:
        used = {folder: _bytes_of(folder) for folder in self._by_last_use()}
        total = sum(used.values())
        for folder, own in used.items():
            if total <= self._budget_bytes:
                break
            if self._remove(folder):
                total -= own
        metrics.MODEL_DISK_BYTES.set(total)

    def _by_last_use(self) -> list[Path]:
        times = {folder: _last_use(folder) for folder in self._versions.iterdir()}
        return sorted(times, key=lambda folder: times[folder])

    def _remove(self, folder: Path) -> bool:
        with self._lock_file(folder.name) as lock:
            if not _taken(lock) or _last_use(folder) > time() - SPARED_S:
                return False
            rmtree(folder, ignore_errors=True)
        logger.info("removed %s from disk", folder.name, extra={"action": "evict_model"})
        return True

    def _lock_file(self, name: str) -> TextIO:
        with self.os_errors_translated():
            self._locks.mkdir(parents=True, exist_ok=True)
            return (self._locks / name).open("w")


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0


def _bytes_of(folder: Path) -> int:
    """On disk, where of a sparse file only what was written counts; or reserved, if more."""
    blocks = reserved = 0
    for path in folder.rglob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        blocks += stat.st_blocks
        if path.name == _RESERVED:
            reserved = stat.st_size
    return max(512 * blocks, reserved)
