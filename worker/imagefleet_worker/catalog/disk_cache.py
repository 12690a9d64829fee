"""Local disk cache of downloaded models, shared by all workers of a host."""

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
EVICTION_GRACE_S = 120
"""Versions used this recently are not evicted even over budget: they may be needed next."""

_RESERVED = ".reserved"
"""A sparse file in a version's folder, as long as the complete version will be."""


class DiskCache:
    """An LRU cache of folders, one for each model version.

    A folder's modification time is its last use. Locks are separate files, taken by `flock`: they
    exclude processes and threads, and are released when a process dies. A version has two: one is
    held shared by users and exclusively for removal, the other is held while it is downloaded.

    Args:
        root: of the cache; the same for all workers of a host.
        budget_bytes: size limit of all versions; a single one may exceed it.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._versions = root / "versions"
        self._locks = root / "locks"
        self._budget_bytes = budget_bytes

    def folder(self, version: str) -> Path:
        """The folder of a version, which need not exist."""
        return self._versions / version

    @contextmanager
    def pinned(self, version: str) -> Generator[None]:
        """Prevent the eviction of a version; several users may pin it at once.

        The folder is created if needed, and marked as used.

        Raises:
            FileUnavailable: the disk is full, or cannot be read or written.
        """
        with self._lock_file(version) as lock:
            with self.os_errors_translated():
                # Blocks while the version is being removed.
                fcntl.flock(lock, fcntl.LOCK_SH)
                folder = self.folder(version)
                folder.mkdir(parents=True, exist_ok=True)
                os.utime(folder)
            yield

    @contextmanager
    def fill_lock(self, version: str, while_waiting: Callable[[], None]) -> Generator[None]:
        """Hold the exclusive lock to fill the folder of a version, which the caller has `pinned`.

        Args:
            while_waiting: called repeatedly while another holds the lock; it may raise.

        Raises:
            FileUnavailable: the disk is full, or cannot be read or written, also in the body.
        """
        with self._lock_file(f"{version}.fill") as lock, self.os_errors_translated():
            while not _try_lock(lock):
                while_waiting()
                sleep(LOCK_POLL_S)
            yield

    @contextmanager
    def os_errors_translated(self) -> Generator[None]:
        """Translate `OSError` from the body to `FileUnavailable`."""
        try:
            yield
        except OSError as exc:
            root = self._versions.parent
            text = f"the model cache {root} cannot be read or written: {exc.strerror or exc}"
            raise FileUnavailable(text) from exc

    @contextmanager
    def reserved(self, version: str, size_bytes: int) -> Generator[None]:
        """Reserve space for a version being filled: in the body its full size counts.

        Least recently used versions are evicted to fit the budget. If the process is killed in the
        body, the reservation stays until the version is filled or removed.

        Args:
            size_bytes: of the complete version.

        Raises:
            FileUnavailable: the disk is full, or cannot be read or written.
        """
        reserved = self.folder(version) / _RESERVED
        with self._lock_file("room") as lock:
            with self.os_errors_translated():
                fcntl.flock(lock, fcntl.LOCK_EX)
                reserved.touch()
                os.truncate(reserved, size_bytes)
            self._evict_to_fit()
        try:
            yield
        finally:
            reserved.unlink(missing_ok=True)

    def _evict_to_fit(self) -> None:
        sizes = {folder: _bytes_of(folder) for folder in self._by_last_use()}
        total = sum(sizes.values())
        for folder, size in sizes.items():
            if total <= self._budget_bytes:
                break
            if self._remove(folder):
                total -= size
        metrics.MODEL_DISK_BYTES.set(total)

    def _by_last_use(self) -> list[Path]:
        times = {folder: _last_use(folder) for folder in self._versions.iterdir()}
        return sorted(times, key=lambda folder: times[folder])

    def _remove(self, folder: Path) -> bool:
        with self._lock_file(folder.name) as lock:
            if not _try_lock(lock) or _last_use(folder) > time() - EVICTION_GRACE_S:
                return False
            rmtree(folder, ignore_errors=True)
        logger.info("evicted %s from disk", folder.name, extra={"action": "evict_model"})
        return True

    def _lock_file(self, name: str) -> TextIO:
        with self.os_errors_translated():
            self._locks.mkdir(parents=True, exist_ok=True)
            return (self._locks / name).open("w")


def _try_lock(lock: TextIO) -> bool:
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
    """Allocated bytes (of a sparse file only what was written), or the reservation if larger."""
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
