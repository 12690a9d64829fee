"""Where in a text the tokens of textual inversions stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from imagefleet_shared.errors import InvalidRequest

from ..adapters.textual_inversion import Embedding


@dataclass(frozen=True)
class TextualInversion:
    """An embedding as a prompt may use it."""

    embedding: Embedding
    token: str
    """Words that trigger it; A1111 takes the embedding's name. Case does not matter."""
    scale: float = 1.0
    """Factor on the vectors; finite."""


class Triggers:
    """Finds inversions by their tokens' sequence in CLIP's vocabulary, as A1111 does.

    Args:
        tokenizer: the one that also reads the texts.
        inversions: those that may be triggered.

    Raises:
        InvalidRequest: two different ones have the same tokens, or one has none.
    """

    def __init__(self, tokenizer: CLIPTokenizer, inversions: Sequence[TextualInversion]) -> None:
        self._by_tokens: dict[tuple[int, ...], TextualInversion] = {}
        words = [inversion.token for inversion in inversions]
        # The tokenizer refuses an empty list.
        tokenized = tokenizer(words, add_special_tokens=False).input_ids if words else []
        for inversion, tokens in zip(inversions, tokenized, strict=True):
            if not tokens:
                raise InvalidRequest(f"token {inversion.token!r} has no characters to look for")
            known = self._by_tokens.setdefault(tuple(tokens), inversion)
            if known != inversion:
                raise InvalidRequest(
                    f"tokens {known.token!r} and {inversion.token!r} read the same; "
                    f"they stand for {_describe(known)} and {_describe(inversion)}"
                )
        self._lengths = sorted({len(tokens) for tokens in self._by_tokens}, reverse=True)

    def at(self, tokens: Sequence[int], position: int) -> tuple[TextualInversion, int] | None:
        """The inversion with the longest trigger that starts there, and the trigger's length."""
        for length in self._lengths:
            inversion = self._by_tokens.get(tuple(tokens[position : position + length]))
            if inversion is not None:
                return inversion, length
        return None


def _describe(inversion: TextualInversion) -> str:
    return f"{inversion.embedding.name} at scale {inversion.scale}"
