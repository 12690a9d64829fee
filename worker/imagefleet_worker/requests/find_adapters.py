"""Look up the adapters that a request's fields and prompts name in the model store."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from imagefleet_shared.errors import ImagefleetError, IncompatibleAdapter, InvalidRequest
from imagefleet_shared.request_parts import LoRA, TextualInversion
from imagefleet_worker.adapters.textual_inversion import (
    Embedding,
    bundled_embeddings,
    load_embedding,
)
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.prompts.extra_networks import LoRARef, extract_loras
from imagefleet_worker.prompts.tokens import match_key
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
    requested: Sequence[LoRA],
    checkpoint: ModelFile,
    models: ModelStore,
) -> tuple[str, tuple[RequestedLoRA, ...]]:
    """The prompt without its LoRA tags, and the LoRAs of both tags and fields, without duplicates.

    Raises:
        InvalidRequest: a tag is malformed or in the negative prompt, or a LoRA is requested twice
            with different scales.
        UnknownLora: no LoRA has the name.
        IncompatibleAdapter: a LoRA is for another checkpoint family.
    """
    prompt, tagged = extract_loras(prompt)
    misplaced = extract_loras(negative_prompt)[1]
    if misplaced:
        raise InvalidRequest(
            f"<lora:{misplaced[0].name}> stands in the negative prompt; LoRAs belong in the prompt"
        )
    found: dict[str, RequestedLoRA] = {}
    for ref in (*tagged, *_as_refs(requested)):
        file = _find_lora(models, ref.name, checkpoint)
        # Keyed by the file's own name: a tag and a field may use different aliases of one file.
        lora = RequestedLoRA(file, ref.unet_scale, ref.text_encoder_scale)
        known = found.setdefault(file.name, lora)
        if known != lora:
            raise InvalidRequest(
                f"LoRA {file.name!r} is asked for twice, with scales {_scales(known)} and "
                f"{_scales(lora)}"
            )
    return prompt, tuple(lora for _, lora in sorted(found.items()))


def find_inversions(
    requested: Sequence[TextualInversion],
    match_keys: Sequence[str],
    loras: Iterable[RequestedLoRA],
    checkpoint: ModelFile,
    models: ModelStore,
) -> tuple[EmbeddingCandidate, ...]:
    """The embeddings that the texts may trigger.

    These are the embeddings in the request's fields, those bundled in its LoRAs, and those in the
    store for the checkpoint's family whose name may occur in a text. As in A1111, the name of an
    embedding for another family is an ordinary word.

    Args:
        match_keys: `text_match_key` of each text.

    Raises:
        UnknownEmbedding: no embedding has a requested name.
        CorruptFile, StorageUnavailable, WorkerFailure: a requested embedding cannot be read, or
            two files have its name.
    """
    compatible = {
        file.name: file for file in models.list_candidates("embedding", checkpoint.family)
    }
    found: dict[str, EmbeddingCandidate] = {}
    for inversion in requested:
        file = compatible.get(inversion.name) or models.find("embedding", inversion.name)
        token = inversion.token or inversion.name
        found[token] = PromptEmbedding(_embedding(file, models), token, inversion.scale)
    for lora in loras:
        for embedding in _bundled(lora.file, models):
            found.setdefault(embedding.name, PromptEmbedding(embedding, embedding.name))
    for file in compatible.values():
        key = match_key(file.name)
        if file.name not in found and any(key in text_key for text_key in match_keys):
            found[file.name] = _candidate(file, models)
    return tuple(found.values())


def _as_refs(requested: Sequence[LoRA]) -> list[LoRARef]:
    return [
        LoRARef(
            name=lora.name,
            unet_scale=lora.scale,
            text_encoder_scale=(
                lora.scale if lora.text_encoder_scale is None else lora.text_encoder_scale
            ),
        )
        for lora in requested
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
        # Only tokenization tells whether a text has the name: "art" also matches "a party".
        return UnusableEmbedding(file.name, exc)


def _embedding(file: ModelFile, models: ModelStore) -> Embedding:
    if file.error:
        raise file.error
    models.fetch(file)
    return _load_embedding(file)


@lru_cache(maxsize=256)
def _load_embedding(file: ModelFile) -> Embedding:
    return load_embedding(file.path)


def _bundled(file: ModelFile, models: ModelStore) -> tuple[Embedding, ...]:
    if not (file.metadata and file.metadata.bundles_embeddings):
        return ()
    return bundled_embeddings(read_tensors(models.fetch(file)).tensors, models.sha256(file) or "")
