"""Where in a text the tokens of textual inversions stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from imagefleet_shared.errors import ImagefleetError, InvalidRequest
from imagefleet_worker.adapters.textual_inversion import Embedding
from imagefleet_worker.prompts.tokens import tokenized


@dataclass(frozen=True)
class TextualInversion:
    """An embedding as a prompt may use it."""

    embedding: Embedding
    token: str
    """Words that trigger it; A1111 takes the embedding's name. Case does not matter."""
    scale: float = 1.0
    """Factor on the vectors; finite."""


@dataclass(frozen=True)
class Unusable:
    """What has an embedding's name and cannot be one now, which only texts with the name mind."""

    token: str
    fault: ImagefleetError


Offer = TextualInversion | Unusable
"""What a text may trigger."""


class Triggers:
    """Finds inversions by their tokens' sequence in CLIP's vocabulary, as A1111 does.

    Args:
        tokenizer: the one that also reads the texts.
        offers: what may be triggered.

    Raises:
        InvalidRequest: one has no tokens.
    """

    def __init__(self, tokenizer: CLIPTokenizer, offers: Sequence[Offer]) -> None:
        self._by_tokens: dict[tuple[int, ...], Offer] = {}
        words = tokenized(tokenizer, [offer.token for offer in offers])
        for offer, word in zip(offers, words, strict=True):
            if not word:
                raise InvalidRequest(f"token {offer.token!r} has no characters to look for")
            tokens = tuple(word)
            known = self._by_tokens.setdefault(tokens, offer)
            if known != offer:
                self._by_tokens[tokens] = _clash(known, offer)
        self._lengths = sorted({len(tokens) for tokens in self._by_tokens}, reverse=True)

    def at(self, tokens: Sequence[int], position: int) -> tuple[TextualInversion, int] | None:
        """The inversion with the longest trigger that starts there, and the trigger's length.

        Raises:
            InvalidRequest: two different ones have these tokens.
            ImagefleetError: what is triggered is unusable.
        """
        for length in self._lengths:
            offer = self._by_tokens.get(tuple(tokens[position : position + length]))
            if isinstance(offer, Unusable):
                raise offer.fault
            if offer is not None:
                return offer, length
        return None


def _clash(one: Offer, other: Offer) -> Unusable:
    if isinstance(one, Unusable):
        return one
    if isinstance(other, Unusable):
        return other
    return Unusable(
        one.token,
        InvalidRequest(
            f"tokens {one.token!r} and {other.token!r} read the same; "
            f"they stand for {_describe(one)} and {_describe(other)}"
        ),
    )


def _describe(inversion: TextualInversion) -> str:
    return f"{inversion.embedding.name} at scale {inversion.scale}"
