"""Where in a text the tokens of textual inversions stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from imagefleet_shared.errors import ImagefleetError, InvalidRequest
from imagefleet_worker.adapters.textual_inversion import Embedding
from imagefleet_worker.prompts.tokens import tokenized


@dataclass(frozen=True)
class PromptEmbedding:
    """An embedding as a prompt may use it."""

    embedding: Embedding
    token: str
    """Words that trigger it; A1111 takes the embedding's name. Case does not matter."""
    scale: float = 1.0
    """Factor on the vectors; finite."""


@dataclass(frozen=True)
class UnusableEmbedding:
    """What has an embedding's name and cannot be one now, which only texts with the name mind."""

    token: str
    fault: ImagefleetError


EmbeddingCandidate = PromptEmbedding | UnusableEmbedding
"""What a text may trigger."""


class Triggers:
    """Finds inversions by their tokens' sequence in CLIP's vocabulary, as A1111 does.

    Args:
        tokenizer: the one that also reads the texts.
        offers: what may be triggered.

    Raises:
        InvalidRequest: one has no tokens.
    """

    def __init__(self, tokenizer: CLIPTokenizer, candidates: Sequence[EmbeddingCandidate]) -> None:
        self._by_tokens: dict[tuple[int, ...], EmbeddingCandidate] = {}
        words = tokenized(tokenizer, [candidate.token for candidate in candidates])
        for candidate, word in zip(candidates, words, strict=True):
            if not word:
                raise InvalidRequest(f"token {candidate.token!r} has no characters to look for")
            tokens = tuple(word)
            known = self._by_tokens.setdefault(tokens, candidate)
            if known != candidate:
                self._by_tokens[tokens] = _clash(known, candidate)
        self._lengths = sorted({len(tokens) for tokens in self._by_tokens}, reverse=True)

    def at(self, tokens: Sequence[int], position: int) -> tuple[PromptEmbedding, int] | None:
        """The inversion with the longest trigger that starts there, and the trigger's length.

        Raises:
            InvalidRequest: two different ones have these tokens.
            ImagefleetError: what is triggered is unusable.
        """
        for length in self._lengths:
            candidate = self._by_tokens.get(tuple(tokens[position : position + length]))
            if isinstance(candidate, UnusableEmbedding):
                raise candidate.fault
            if candidate is not None:
                return candidate, length
        return None


def _clash(one: EmbeddingCandidate, other: EmbeddingCandidate) -> UnusableEmbedding:
    if isinstance(one, UnusableEmbedding):
        return one
    if isinstance(other, UnusableEmbedding):
        return other
    return UnusableEmbedding(
        one.token,
        InvalidRequest(
            f"tokens {one.token!r} and {other.token!r} read the same; "
            f"they stand for {_describe(one)} and {_describe(other)}"
        ),
    )


def _describe(inversion: PromptEmbedding) -> str:
    return f"{inversion.embedding.name} at scale {inversion.scale}"
