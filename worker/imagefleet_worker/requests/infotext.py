"""The models named in an image's infotext, and whether the infotext fits the image file."""

from collections.abc import Callable

from imagefleet_shared import infotext
from imagefleet_shared.field_types import MAX_SEED
from imagefleet_shared.image_files import check_parameters
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.requests.resolved import ResolvedGenerate


def check_infotext(job: ResolvedGenerate) -> None:
    """Raise `InvalidRequest` if the infotext does not fit the job's output format.

    The model files may not be on disk yet, so the length is checked with placeholder digests for
    all of them, and with the longest seeds.
    """
    models = infotext_models(job, lambda file: "0" * 64)
    text = infotext.generated(job.request, MAX_SEED, models, MAX_SEED)
    check_parameters(job.request.output_format, text)


def infotext_models(
    job: ResolvedGenerate, sha256_of: Callable[[ModelFile], str | None]
) -> infotext.Models:
    """The models that a job uses, with their hashes."""
    checkpoint, *others = [inputs.checkpoint for inputs in job.all_pass_inputs]
    digests = {other.name: sha256_of(other) for other in others}
    return infotext.Models(
        checkpoint=checkpoint.name,
        checkpoint_sha256=sha256_of(checkpoint),
        loras={
            lora.file.name: sha256_of(lora.file) or ""
            for inputs in job.all_pass_inputs
            for lora in inputs.loras
        },
        embeddings={
            inversion.embedding.name: inversion.embedding.sha256
            for inputs in job.all_pass_inputs
            for inversion in inputs.inversions
        },
        padded=any(inputs.windows > 1 for inputs in job.all_pass_inputs),
        other_checkpoints={name: digest for name, digest in digests.items() if digest},
    )
