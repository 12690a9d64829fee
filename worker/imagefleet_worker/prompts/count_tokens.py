"""Counting the windows that texts take and the embeddings they trigger, without encoding them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.prompts.lay_out import lay_out
from imagefleet_worker.prompts.triggers import EmbeddingCandidate, PromptEmbedding
from imagefleet_worker.prompts.windows import check_length, inversions_in


@dataclass(frozen=True)
class PromptLength:
    """The windows and embeddings of a pass's texts."""

    windows: int
    """Windows of 75 tokens that the longest text takes."""
    inversions: tuple[PromptEmbedding, ...]
    """Those that any text triggers, in order of first appearance."""


def count_tokens(
    tokenizer: CLIPTokenizer,
    texts: Iterable[str],
    candidates: Sequence[EmbeddingCandidate],
    max_tokens: int,
    emphasis: Emphasis = "original",
) -> PromptLength:
    """Tokenize texts and count what they take.

    Args:
        tokenizer: CLIP's; not thread-safe.
        texts: the texts of all schedules, at least one.
        candidates: embeddings that may be triggered.
        max_tokens: limit for each text; all its windows but the last count 75, however full.
        emphasis: how the texts will be encoded.

    Raises:
        PromptTooLong: a text has more tokens.
        InvalidRequest: a bracket's weight is not a finite number, or a text contains a token that
            two inversions have.
        ImagefleetError: a text triggers an unusable embedding.
    """
    count = 0
    triggered: dict[PromptEmbedding, None] = {}
    for text in texts:
        windows = lay_out(tokenizer, text, candidates, emphasis)
        check_length(windows, max_tokens)
        count = max(count, len(windows))
        triggered |= dict.fromkeys(inversions_in(windows))
    return PromptLength(count, tuple(triggered))
