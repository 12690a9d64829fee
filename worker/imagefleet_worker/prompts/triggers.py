"""Finding the tokens that trigger textual inversions in a text."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from imagefleet_shared.errors import ImagefleetError, InvalidRequest
from imagefleet_worker.adapters.textual_inversion import Embedding
from imagefleet_worker.prompts.tokens import tokenize


@dataclass(frozen=True)
class PromptEmbedding:
    """An embedding that a prompt may trigger."""

    embedding: Embedding
    token: str
    """The words that trigger it, in A1111 the embedding's name; case-insensitive."""
    scale: float = 1.0
    """Factor for the vectors; finite."""


@dataclass(frozen=True)
class UnusableEmbedding:
    """An embedding that cannot be loaded; only texts that trigger it fail, with its error."""

    token: str
    error: ImagefleetError


EmbeddingCandidate = PromptEmbedding | UnusableEmbedding
"""An embedding that a text may trigger."""


class Triggers:
    """Finds inversions by their sequence of CLIP tokens, as A1111 does.

    Args:
        tokenizer: the one that also tokenizes the texts.
        candidates: embeddings that may be triggered.

    Raises:
        InvalidRequest: a candidate's token is empty.
    """

    def __init__(self, tokenizer: CLIPTokenizer, candidates: Sequence[EmbeddingCandidate]) -> None:
        self._by_tokens: dict[tuple[int, ...], EmbeddingCandidate] = {}
        tokens_of_candidates = tokenize(tokenizer, [candidate.token for candidate in candidates])
        for candidate, token_ids in zip(candidates, tokens_of_candidates, strict=True):
            if not token_ids:
                raise InvalidRequest(f"token {candidate.token!r} has no characters to look for")
            tokens = tuple(token_ids)
            known = self._by_tokens.setdefault(tokens, candidate)
            if known != candidate:
                self._by_tokens[tokens] = _ambiguous(known, candidate)
        self._lengths = sorted({len(tokens) for tokens in self._by_tokens}, reverse=True)

    def at(self, tokens: Sequence[int], position: int) -> tuple[PromptEmbedding, int] | None:
        """The inversion with the longest trigger at a position, and the trigger's length in tokens.

        Raises:
            InvalidRequest: two different inversions have these tokens.
            ImagefleetError: the embedding triggered is unusable.
        """
        for length in self._lengths:
            candidate = self._by_tokens.get(tuple(tokens[position : position + length]))
            if isinstance(candidate, UnusableEmbedding):
                raise candidate.error
            if candidate is not None:
                return candidate, length
        return None


def _ambiguous(one: EmbeddingCandidate, other: EmbeddingCandidate) -> UnusableEmbedding:
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
