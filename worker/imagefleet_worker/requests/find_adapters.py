"""Which adapters a request asks for, by its fields and by its prompts, found in the model store."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from imagefleet_shared.errors import ImagefleetError, IncompatibleAdapter, InvalidRequest
from imagefleet_shared.request_parts import LoRA
from imagefleet_shared.request_parts import TextualInversion as AskedInversion
from imagefleet_worker.adapters.textual_inversion import (
    Embedding,
    bundled_embeddings,
    load_embedding,
)
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.prompts.extra_networks import LoRARef, extract_loras
from imagefleet_worker.prompts.tokens import letters_of
from imagefleet_worker.prompts.triggers import (
    EmbeddingCandidate,
    PromptEmbedding,
    UnusableEmbedding,
)
from imagefleet_worker.requests.resolved import RequestedLoRA
from imagefleet_worker.weights.adapter_tensors import read_tensors


def find_loras(
    prompt: str,
    negative_prompt: str,
    asked: Sequence[LoRA],
    checkpoint: ModelFile,
    models: ModelStore,
) -> tuple[str, tuple[RequestedLoRA, ...]]:
    """The prompt without its tags, and the LoRAs of tags and fields, each once.

    Raises:
        InvalidRequest: a tag is malformed, stands in the negative prompt, or two mentions of a LoRA
            have different scales.
        UnknownLora: there is none of that name.
        IncompatibleAdapter: it is for another family of checkpoints.
    """
    prompt, tagged = extract_loras(prompt)
    misplaced = extract_loras(negative_prompt)[1]
    if misplaced:
        raise InvalidRequest(
            f"<lora:{misplaced[0].name}> stands in the negative prompt; LoRAs belong in the prompt"
        )
    wanted: dict[str, RequestedLoRA] = {}
    for ref in (*tagged, *_as_refs(asked)):
        file = _find_lora(models, ref.name, checkpoint)
        # By the file's own name: the other mention may have its alias.
        one = RequestedLoRA(file, ref.unet_scale, ref.text_encoder_scale)
        known = wanted.setdefault(file.name, one)
        if known != one:
            raise InvalidRequest(
                f"LoRA {file.name!r} is asked for twice, with scales {_scales(known)} and "
                f"{_scales(one)}"
            )
    return prompt, tuple(one for _, one in sorted(wanted.items()))


def find_inversions(
    asked: Sequence[AskedInversion],
    letters: Sequence[str],
    loras: Iterable[RequestedLoRA],
    checkpoint: ModelFile,
    models: ModelStore,
) -> tuple[EmbeddingCandidate, ...]:
    """What may be triggered: embeddings of the request's fields, of its LoRAs' files, and those of
    the store for the checkpoint's family whose name a text may have.

    As in A1111 the name of one for another family is a word like any other.

    Args:
        letters: of each text; see `letters_in`.

    Raises:
        UnknownEmbedding: there is none of a name that was asked for.
        CorruptFile, StorageUnavailable, WorkerFailure: it cannot be read, or two have its name.
    """
    fitting = {file.name: file for file in models.named("embedding", checkpoint.family)}
    found: dict[str, EmbeddingCandidate] = {}
    for one in asked:
        file = fitting.get(one.name) or models.find("embedding", one.name)
        token = one.token or one.name
        found[token] = PromptEmbedding(_embedding(file, models), token, one.scale)
    for lora in loras:
        for embedding in _bundled(lora.file, models):
            found.setdefault(embedding.name, PromptEmbedding(embedding, embedding.name))
    for file in fitting.values():
        name = letters_of(file.name)
        if file.name not in found and any(name in text for text in letters):
            found[file.name] = _candidate(file, models)
    return tuple(found.values())


def _as_refs(asked: Sequence[LoRA]) -> list[LoRARef]:
    return [
        LoRARef(
            name=lora.name,
            unet_scale=lora.scale,
            text_encoder_scale=(
                lora.scale if lora.text_encoder_scale is None else lora.text_encoder_scale
            ),
        )
        for lora in asked
    ]


def _scales(lora: RequestedLoRA) -> str:
    return f"{lora.unet_scale:g} (UNet) and {lora.text_encoder_scale:g} (text encoders)"


def _find_lora(models: ModelStore, name: str, checkpoint: ModelFile) -> ModelFile:
    file = models.find("lora", name)
    if file.family is not None and file.family != checkpoint.family:
        raise IncompatibleAdapter(
            f"LoRA {name!r} is for {file.family}; checkpoint {checkpoint.name!r} is "
            f"{checkpoint.family}"
        )
    return file


def _candidate(file: ModelFile, models: ModelStore) -> EmbeddingCandidate:
    try:
        return PromptEmbedding(_embedding(file, models), file.name)
    except ImagefleetError as exc:
        # Whether a text has the name is not known yet: "art" is in "a party".
        return UnusableEmbedding(file.name, exc)


def _embedding(file: ModelFile, models: ModelStore) -> Embedding:
    if file.fault:
        raise file.fault
    models.fetch(file)
    return _load_embedding(file)


@lru_cache(maxsize=256)
def _load_embedding(file: ModelFile) -> Embedding:
    return load_embedding(file.path)


def _bundled(file: ModelFile, models: ModelStore) -> tuple[Embedding, ...]:
    if not (file.metadata and file.metadata.bundles_embeddings):
        return ()
    return bundled_embeddings(read_tensors(models.fetch(file)).tensors, models.sha256(file) or "")
