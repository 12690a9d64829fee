"""Finished pictures on local disk, for as long as the object store is away."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import time

from imagefleet_worker.jobs.encode import Picture

logger = logging.getLogger(__name__)

_LISTING = "pictures.json"
_UNFINISHED = "unfinished-"
_MAX_AGE_S = 24 * 3600
"""A job that another worker ended leaves its pictures here; no attempt waits so long for them."""


class Spool:
    """Pictures that wait on local disk for the object store, by job.

    What has lain there for a day is deleted, at the start and whenever more is kept.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sweep()

    def save(self, job_id: str, pictures: Sequence[Picture]) -> None:
        """Keep a job's pictures: all of them, or, where the disk is full, none.

        Those that an earlier attempt kept stay.
        """
        self._sweep()
        kept = self._root / job_id
        try:
            if kept.exists():
                return
            self._root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=_UNFINISHED, dir=self._root) as name:
                folder = Path(name)
                listing: list[tuple[str, dict[str, object]]] = []
                for index, picture in enumerate(pictures):
                    (folder / str(index)).write_bytes(picture.content)
                    fields = asdict(picture)
                    del fields["content"]
                    listing.append((sha256(picture.content).hexdigest(), fields))
                (folder / _LISTING).write_text(json.dumps(listing))
                folder.rename(kept)
        except OSError as exc:
            logger.warning("pictures of job %s are in memory only: %s", job_id, exc)

    def load(self, job_id: str) -> list[Picture] | None:
        """A job's pictures that an earlier attempt kept here; None where it kept none.

        Those that are not what was kept, as after a crash of the host, are forgotten.
        """
        folder = self._root / job_id
        try:
            if not folder.exists():
                return None
            pictures: list[Picture] = []
            for index, (digest, fields) in enumerate(json.loads((folder / _LISTING).read_text())):
                content = (folder / str(index)).read_bytes()
                if sha256(content).hexdigest() != digest:
                    raise ValueError(f"file {index} of {len(content)} bytes is another")
                pictures.append(Picture(content=content, **fields))
        except (OSError, ValueError, TypeError) as exc:
            logger.warning("kept pictures of job %s are of no use: %s", job_id, exc)
            self.delete(job_id)
            return None
        return pictures

    def delete(self, job_id: str) -> None:
        """Forget a job's pictures."""
        rmtree(self._root / job_id, ignore_errors=True)

    def _sweep(self) -> None:
        oldest_s = time() - _MAX_AGE_S
        for folder in self._root.glob("*"):
            # Other workers of the host sweep too, and what others own cannot be looked into.
            with suppress(OSError):
                # Whoever set the root may have more there: our compose file, the locks of GPUs.
                ours = folder.name.startswith(_UNFINISHED) or (folder / _LISTING).exists()
                if ours and folder.stat().st_mtime < oldest_s:
                    rmtree(folder, ignore_errors=True)
