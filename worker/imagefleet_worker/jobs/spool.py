"""Finished images on local disk, for as long as the object store is unavailable."""

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

from imagefleet_worker.jobs.encode import EncodedImage

logger = logging.getLogger(__name__)

_LISTING = "pictures.json"
_UNFINISHED = "unfinished-"
_MAX_AGE_S = 24 * 3600
"""A job that ended on another worker leaves its images here; no attempt needs them for so long."""


class Spool:
    """Images that wait on local disk for the object store, by job.

    Images older than a day are deleted, at the start and whenever more are saved.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sweep()

    def save(self, job_id: str, images: Sequence[EncodedImage]) -> None:
        """Save a job's images: all of them, or none if the disk is full.

        Images that an earlier attempt saved are not replaced.
        """
        self._sweep()
        saved = self._root / job_id
        try:
            if saved.exists():
                return
            self._root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=_UNFINISHED, dir=self._root) as name:
                folder = Path(name)
                listing: list[tuple[str, dict[str, object]]] = []
                for index, image in enumerate(images):
                    (folder / str(index)).write_bytes(image.content)
                    fields = asdict(image)
                    del fields["content"]
                    listing.append((sha256(image.content).hexdigest(), fields))
                (folder / _LISTING).write_text(json.dumps(listing))
                folder.rename(saved)
        except OSError as exc:
            logger.warning("images of job %s are in memory only: %s", job_id, exc)

    def load(self, job_id: str) -> list[EncodedImage] | None:
        """A job's images that an earlier attempt saved here; None if there are none.

        Damaged images, as after a crash of the host, are deleted.
        """
        folder = self._root / job_id
        try:
            if not folder.exists():
                return None
            images: list[EncodedImage] = []
            for index, (digest, fields) in enumerate(json.loads((folder / _LISTING).read_text())):
                content = (folder / str(index)).read_bytes()
                if sha256(content).hexdigest() != digest:
                    raise ValueError(f"file {index} of {len(content)} bytes was changed")
                images.append(EncodedImage(content=content, **fields))
        except (OSError, ValueError, TypeError) as exc:
            logger.warning("spooled images of job %s are unusable: %s", job_id, exc)
            self.delete(job_id)
            return None
        return images

    def delete(self, job_id: str) -> None:
        """Delete a job's images, if there are any."""
        rmtree(self._root / job_id, ignore_errors=True)

    def _sweep(self) -> None:
        oldest_s = time() - _MAX_AGE_S
        for folder in self._root.glob("*"):
            # Other workers of the host sweep too, and other users' folders cannot be read.
            with suppress(OSError):
                # The root may hold other things: with our compose file, the lock files of GPUs.
                ours = folder.name.startswith(_UNFINISHED) or (folder / _LISTING).exists()
                if ours and folder.stat().st_mtime < oldest_s:
                    rmtree(folder, ignore_errors=True)
