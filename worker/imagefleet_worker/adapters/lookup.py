"""Which adapters a request asks for, by its fields and by its prompts, found in the model store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from imagefleet_shared.errors import IncompatibleAdapter, InvalidRequest
from imagefleet_shared.parts import LoRA
from imagefleet_shared.parts import TextualInversion as AskedInversion

from ..models.model_file import ModelFile
from ..models.store import ModelStore
from ..prompts.extra_networks import LoRARef, extract_loras
from ..prompts.triggers import TextualInversion
from .file_tensors import read_tensors
from .textual_inversion import Embedding, bundled_embeddings, load_embedding


@dataclass(frozen=True)
class WantedLora:
    """A LoRA file and how much of it is wanted."""

    file: ModelFile
    unet_scale: float
    text_encoder_scale: float


def find_loras(
    prompt: str,
    negative_prompt: str,
    asked: Sequence[LoRA],
    checkpoint: ModelFile,
    models: ModelStore,
) -> tuple[str, tuple[WantedLora, ...]]:
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
    wanted: dict[str, WantedLora] = {}
    for ref in (*tagged, *_as_refs(asked)):
        file = _fitting(models, ref.name, checkpoint)
        # By the file's own name: the other mention may have its alias.
        one = WantedLora(file, ref.unet_scale, ref.text_encoder_scale)
        known = wanted.setdefault(file.name, one)
        if known != one:
            raise InvalidRequest(
                f"LoRA {file.name!r} is asked for twice, with scales {_scales(known)} and "
                f"{_scales(one)}"
            )
    return prompt, tuple(one for _, one in sorted(wanted.items()))


def find_inversions(
    asked: Sequence[AskedInversion],
    texts: Iterable[str],
    loras: Iterable[WantedLora],
    models: ModelStore,
) -> tuple[TextualInversion, ...]:
    """What may be triggered: embeddings of the request's fields, of its LoRAs' files, and of the
    store where a text has their name.

    Raises:
        UnknownEmbedding: there is none of that name.
        CorruptFile: its file cannot be read.
        StorageUnavailable, WorkerFailure: it is not known which file a name in a text stands for.
    """
    found = {
        one.token or one.name: TextualInversion(
            _embedding(models.find("embedding", one.name), models), one.token or one.name, one.scale
        )
        for one in asked
    }
    for lora in loras:
        for embedding in _bundled(lora.file, models):
            found.setdefault(embedding.name, TextualInversion(embedding, embedding.name))
    folded = [text.casefold() for text in texts]
    for file in models.named("embedding"):
        if any(file.name.casefold() in text for text in folded):
            if file.fault:
                raise file.fault
            found.setdefault(file.name, TextualInversion(_embedding(file, models), file.name))
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


def _scales(lora: WantedLora) -> str:
    return f"{lora.unet_scale:g} (UNet) and {lora.text_encoder_scale:g} (text encoders)"


def _fitting(models: ModelStore, name: str, checkpoint: ModelFile) -> ModelFile:
    file = models.find("lora", name)
    if file.family is not None and file.family != checkpoint.family:
        raise IncompatibleAdapter(
            f"LoRA {name!r} is for {file.family}; checkpoint {checkpoint.name!r} is "
            f"{checkpoint.family}"
        )
    return file


def _embedding(file: ModelFile, models: ModelStore) -> Embedding:
    models.fetch(file)
    return _loaded(file)


@lru_cache(maxsize=256)
def _loaded(file: ModelFile) -> Embedding:
    return load_embedding(file.path)


def _bundled(file: ModelFile, models: ModelStore) -> tuple[Embedding, ...]:
    if not (file.facts and file.facts.bundles_embeddings):
        return ()
    return bundled_embeddings(read_tensors(models.fetch(file)).tensors, models.sha256(file) or "")
