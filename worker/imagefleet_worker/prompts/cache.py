"""Encoded texts, kept so that a text that many jobs have is encoded once."""

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
    """Everything that decides an encoding; the tokens follow from text and inversions."""

    text: str
    inversions: tuple[PromptEmbedding, ...]
    """Only those that stand in the text."""
    settings: TextSettings
    checkpoint: ModelFile
    adapters: Terms


class PromptEncoder:
    """Encodes texts and keeps them while they fit a number of bytes; for the engine's thread.

    What it keeps stays on the device where it was made, and has the bits that encoding it anew
    would give.

    Args:
        budget_bytes: for all that is kept; a text that alone is larger is handed out, not kept.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._kept: ByteLRUCache[_Key, EncodedText] = ByteLRUCache(
            lambda text: text.size_bytes, budget_bytes
        )

    @property
    def stats(self) -> CacheStats:
        return self._kept.stats

    def encode(
        self,
        warm: WarmPipeline,
        text: str,
        inversions: Sequence[PromptEmbedding],
        settings: TextSettings,
    ) -> EncodedText:
        """A text, encoded with the adapters that are on; read it, do not write to it.

        Args:
            warm: the pipeline whose text encoders to use; they are left as they were.
            text: with brackets for emphasis; no LoRAs' tags, no schedule, no AND.
            inversions: those that it may trigger.
            settings: how.

        Raises:
            PromptTooLong: it has more tokens than the settings allow.
            InvalidRequest: a weight is no finite number, or two inversions have the same token.
            IncompatibleAdapter: an inversion in it is for other text encoders than these.
        """
        windows = windows_of(warm, text, inversions, settings)
        adapters = warm.merged.on_text_encoders
        key = _Key(text, inversions_in(windows), settings, warm.file, adapters)
        return self._kept.get_or_load(key, lambda: encode_windows(warm, windows, settings))

    def clear(self) -> None:
        """Keep nothing: for when the weights were found not to be what they should have been."""
        self._kept.clear()
