"""Encodes images as files: results with their infotext, and previews."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from imagefleet_shared import infotext
from imagefleet_shared.field_types import ImageFormat
from imagefleet_shared.image_files import encode_image
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.requests.infotext import infotext_models
from imagefleet_worker.requests.resolved import ResolvedGenerate, ResolvedJob

_PREVIEW_QUALITY = 90


@dataclass(frozen=True)
class EncodedImage:
    """An image file of a result."""

    content: bytes
    format: ImageFormat
    width: int
    height: int
    seed: int | None


def encode_images(
    job: ResolvedJob,
    images: Sequence[Image.Image],
    sha256_of: Callable[[ModelFile], str | None],
    png_level: int,
) -> list[EncodedImage]:
    """Encode a job's images, each with its infotext.

    Args:
        job: that they belong to.
        images: in the order of the job's seeds.
        sha256_of: the hash of a model file, for the infotext; None for a folder.
        png_level: see `encode_image`.
    """
    encoded: list[EncodedImage] = []
    for index, image in enumerate(images):
        if isinstance(job, ResolvedGenerate):
            seed = job.seeds.seeds[index]
            varied = job.seeds.variation_seeds
            variation_seed = varied[index] if varied and job.seeds.variation_strength else None
            models = infotext_models(job, sha256_of)
            text = infotext.generated(job.request, seed, models, variation_seed)
        else:
            seed, text = None, infotext.upscaled(job.request, job.picture.parameters)
        file_format = job.request.output_format
        icc_profile = None if isinstance(job, ResolvedGenerate) else job.picture.icc_profile
        content = encode_image(image, file_format, text, png_level, icc_profile=icc_profile)
        encoded.append(EncodedImage(content, file_format, image.width, image.height, seed))
    return encoded


def encode_preview(previews: Sequence[Image.Image]) -> bytes:
    """Previews of one size side by side, as a JPEG."""
    width, height = previews[0].size
    strip = Image.new("RGB", (width * len(previews), height))
    for index, preview in enumerate(previews):
        strip.paste(preview, (index * width, 0))
    file = BytesIO()
    strip.save(file, "JPEG", quality=_PREVIEW_QUALITY)
    return file.getvalue()
