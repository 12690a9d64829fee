"""A cache of encoded prompts, so that a text that many jobs share is encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

from imagefleet_worker.adapters.scaled import Terms
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.lru_cache import ByteLRUCache, CacheStats
from imagefleet_worker.prompts.encode import TextSettings, encode_windows, windows_of
from imagefleet_worker.prompts.encoded import EncodedText
from imagefleet_worker.prompts.triggers import PromptEmbedding
from imagefleet_worker.prompts.windows import inversions_in


@dataclass(frozen=True)
class _Key:
    """Everything that an encoding depends on; the tokens follow from text and inversions."""

    text: str
    inversions: tuple[PromptEmbedding, ...]
    """Only those that the text triggers."""
    settings: TextSettings
    checkpoint: ModelFile
    adapters: Terms


class PromptEncoder:
    """Encodes texts with an LRU cache; not thread-safe, used on the engine's thread.

    Cached encodings stay on the device and equal a fresh encoding bit for bit.

    Args:
        budget_bytes: size limit of the cache; a larger encoding is returned but not cached.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._cache: ByteLRUCache[_Key, EncodedText] = ByteLRUCache(
            lambda text: text.size_bytes, budget_bytes
        )

    @property
    def stats(self) -> CacheStats:
        return self._cache.stats

    def encode(
        self,
        warm: WarmPipeline,
        text: str,
        inversions: Sequence[PromptEmbedding],
        settings: TextSettings,
    ) -> EncodedText:
        """Encode a text with the merged adapters; the result is shared, do not modify it.

        Args:
            warm: the pipeline whose text encoders to use; they are not changed.
            text: may have brackets for emphasis, but no LoRA tags, no schedule and no AND.
            inversions: those that it may trigger.
            settings: how texts are encoded.

        Raises:
            PromptTooLong: the text has more tokens than the settings allow.
            InvalidRequest: a weight is not a finite number, or two inversions have the same token.
            IncompatibleAdapter: the text triggers an inversion for other text encoders.
        """
        windows = windows_of(warm, text, inversions, settings)
        adapters = warm.merged.text_encoder_terms
        key = _Key(text, inversions_in(windows), settings, warm.file, adapters)
        return self._cache.get_or_load(key, lambda: encode_windows(warm, windows, settings))

    def clear(self) -> None:
        """Empty the cache, for when the weights that encoded the texts turn out corrupted."""
        self._cache.clear()
