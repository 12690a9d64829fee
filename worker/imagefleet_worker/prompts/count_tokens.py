"""How many windows texts take and what they trigger, known before any of them is encoded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.prompts.lay_out import lay_out
from imagefleet_worker.prompts.triggers import EmbeddingCandidate, PromptEmbedding
from imagefleet_worker.prompts.windows import check_length, inversions_in


@dataclass(frozen=True)
class PromptLength:
    """What texts take."""

    windows: int
    """Windows of 75 tokens of the longest."""
    inversions: tuple[PromptEmbedding, ...]
    """That stand in any, in order of first appearance."""


def count_tokens(
    tokenizer: CLIPTokenizer,
    texts: Iterable[str],
    candidates: Sequence[EmbeddingCandidate],
    max_tokens: int,
    emphasis: Emphasis = "original",
) -> PromptLength:
    """Measure texts, one after another.

    Args:
        tokenizer: CLIP's; it serves one thread at a time.
        texts: of schedules, at least one.
        offers: what may be triggered.
        max_tokens: of the longest text; all its windows but the last count 75, however full.
        emphasis: how the texts will be encoded.

    Raises:
        PromptTooLong: a text has more tokens.
        InvalidRequest: a bracket's weight is no finite number, or two inversions have a token that
            is in a text.
        ImagefleetError: an unusable one is triggered.
    """
    count = 0
    triggered: dict[PromptEmbedding, None] = {}
    for text in texts:
        windows = lay_out(tokenizer, text, candidates, emphasis)
        check_length(windows, max_tokens)
        count = max(count, len(windows))
        triggered |= dict.fromkeys(inversions_in(windows))
    return PromptLength(count, tuple(triggered))
