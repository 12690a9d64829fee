"""Finished pictures: files in memory, and on local disk while the object store is away."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import time

from PIL import Image

from imagefleet_shared import infotext
from imagefleet_shared.field_types import MAX_SEED, ImageFormat
from imagefleet_shared.image_files import check_parameters, encode_image
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.resolved import ResolvedGenerate, ResolvedJob

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """An encoded picture."""

    content: bytes
    format: ImageFormat
    width: int
    height: int
    seed: int | None


def encode_pictures(
    job: ResolvedJob, images: Sequence[Image.Image], models: ModelStore, png_level: int
) -> list[Picture]:
    """Pictures as files, each with the text that tells how it was made."""
    pictures: list[Picture] = []
    for index, image in enumerate(images):
        if isinstance(job, ResolvedGenerate):
            seed = job.seeds.seeds[index]
            others = job.seeds.variation_seeds
            variation_seed = others[index] if others and job.seeds.variation_strength else None
            made_with = _made_with(job, models.sha256)
            text = infotext.generated(job.request, seed, made_with, variation_seed)
        else:
            seed, text = None, infotext.upscaled(job.request, job.picture.parameters)
        file_format = job.request.output_format
        icc_profile = None if isinstance(job, ResolvedGenerate) else job.picture.icc_profile
        content = encode_image(image, file_format, text, png_level, icc_profile=icc_profile)
        pictures.append(Picture(content, file_format, image.width, image.height, seed))
    return pictures


def check_text(job: ResolvedGenerate) -> None:
    """Refuse a job whose text its files have no room for; raises `InvalidRequest`.

    The files to be hashed may not be on disk yet: room is asked for digests of all of them, and for
    the longest seeds.
    """
    made_with = _made_with(job, lambda file: "0" * 64)
    text = infotext.generated(job.request, MAX_SEED, made_with, MAX_SEED)
    check_parameters(job.request.output_format, text)


def _made_with(
    job: ResolvedGenerate, sha256_of: Callable[[ModelFile], str | None]
) -> infotext.Models:
    """The models of a picture, with their hashes."""
    checkpoint, *others = [look.checkpoint for look in job.looks]
    digests = {other.name: sha256_of(other) for other in others}
    return infotext.Models(
        checkpoint=checkpoint.name,
        checkpoint_sha256=sha256_of(checkpoint),
        loras={
            lora.file.name: sha256_of(lora.file) or "" for look in job.looks for lora in look.loras
        },
        embeddings={
            inversion.embedding.name: inversion.embedding.sha256
            for look in job.looks
            for inversion in look.inversions
        },
        padded=any(look.windows > 1 for look in job.looks),
        other_checkpoints={name: digest for name, digest in digests.items() if digest},
    )


_LISTING = "pictures.json"
_UNFINISHED = "unfinished-"
_KEPT_S = 24 * 3600
"""A job that another worker ended leaves its pictures here; no attempt waits so long for them."""


class Spool:
    """Pictures that wait on local disk for the object store, by job.

    What has lain there for a day is deleted, at the start and whenever more is kept.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sweep()

    def keep(self, job_id: str, pictures: Sequence[Picture]) -> None:
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
                    facts = asdict(picture)
                    del facts["content"]
                    listing.append((sha256(picture.content).hexdigest(), facts))
                (folder / _LISTING).write_text(json.dumps(listing))
                folder.rename(kept)
        except OSError as exc:
            log.warning("pictures of job %s are in memory only: %s", job_id, exc)

    def find(self, job_id: str) -> list[Picture] | None:
        """A job's pictures that an earlier attempt kept here; None where it kept none.

        Those that are not what was kept, as after a crash of the host, are forgotten.
        """
        folder = self._root / job_id
        try:
            if not folder.exists():
                return None
            pictures: list[Picture] = []
            for index, (digest, facts) in enumerate(json.loads((folder / _LISTING).read_text())):
                content = (folder / str(index)).read_bytes()
                if sha256(content).hexdigest() != digest:
                    raise ValueError(f"file {index} of {len(content)} bytes is another")
                pictures.append(Picture(content=content, **facts))
        except (OSError, ValueError, TypeError) as exc:
            log.warning("kept pictures of job %s are of no use: %s", job_id, exc)
            self.drop(job_id)
            return None
        return pictures

    def drop(self, job_id: str) -> None:
        """Forget a job's pictures."""
        rmtree(self._root / job_id, ignore_errors=True)

    def _sweep(self) -> None:
        oldest_s = time() - _KEPT_S
        for folder in self._root.glob("*"):
            # Other workers of the host sweep too, and what others own cannot be looked into.
            with suppress(OSError):
                # Whoever set the root may have more there: our compose file, the locks of GPUs.
                ours = folder.name.startswith(_UNFINISHED) or (folder / _LISTING).exists()
                if ours and folder.stat().st_mtime < oldest_s:
                    rmtree(folder, ignore_errors=True)
