"""Encoded texts, kept so that a text that many jobs have is encoded once."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters.cache import CacheStats
from ..adapters.wanted import Terms
from ..models.pipelines import WarmPipeline
from ..models.store import ModelFile
from .chunks import inversions_in
from .encode import TextSettings, encode_windows, windows_of
from .encoded import EncodedText
from .triggers import TextualInversion


@dataclass(frozen=True)
class _Key:
    """Everything that decides an encoding; the tokens follow from text and inversions."""

    text: str
    inversions: tuple[TextualInversion, ...]
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
        self._budget_bytes = budget_bytes
        # Least recently used first.
        self._kept: OrderedDict[_Key, EncodedText] = OrderedDict()
        self._size_bytes = 0
        self._hits = 0
        self._misses = 0

    @property
    def stats(self) -> CacheStats:
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            entries=len(self._kept),
            size_bytes=self._size_bytes,
        )

    def encode(
        self,
        warm: WarmPipeline,
        text: str,
        inversions: Sequence[TextualInversion],
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
        if key in self._kept:
            self._hits += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        self._misses += 1
        encoded = encode_windows(warm, windows, settings)
        self._keep(key, encoded)
        return encoded

    def clear(self) -> None:
        """Keep nothing: for when the weights were found not to be what they should have been."""
        self._kept.clear()
        self._size_bytes = 0

    def _keep(self, key: _Key, encoded: EncodedText) -> None:
        if encoded.size_bytes > self._budget_bytes:
            return
        while self._size_bytes + encoded.size_bytes > self._budget_bytes:
            _, evicted = self._kept.popitem(last=False)
            self._size_bytes -= evicted.size_bytes
        self._kept[key] = encoded
        self._size_bytes += encoded.size_bytes
