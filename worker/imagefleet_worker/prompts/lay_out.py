"""Laying out a prompt's text in windows of weighted tokens and vectors."""

import math
from collections.abc import Sequence
from typing import cast

from transformers import CLIPTokenizer

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.prompts.parse import BREAK, parse_attention
from imagefleet_worker.prompts.tokens import match_key, tokenize
from imagefleet_worker.prompts.triggers import EmbeddingCandidate, Triggers
from imagefleet_worker.prompts.windows import WindowBuilder, WindowToken


def lay_out(
    tokenizer: CLIPTokenizer,
    text: str,
    candidates: Sequence[EmbeddingCandidate],
    emphasis: Emphasis,
) -> list[list[WindowToken]]:
    """The windows of a text, at least one, each with at most 75 tokens.

    Pieces of different weight are tokenized separately, so a bracket in the middle of a word or of
    a trigger splits it.

    Args:
        tokenizer: CLIP's.
        text: may have brackets for emphasis, but no LoRA tags.
        candidates: embeddings that the text may trigger.
        emphasis: with "none", brackets and BREAK are ordinary text.

    Raises:
        InvalidRequest: a weight is not a finite number, or the text contains a token that two
            inversions have.
        ImagefleetError: the text triggers an unusable embedding.
    """
    pieces = _pieces(text, emphasis)
    triggers = Triggers(tokenizer, candidates)
    builder = WindowBuilder(cast(int, tokenizer.convert_tokens_to_ids(",</w>")))
    tokens_of_pieces = tokenize(tokenizer, [piece for piece, _ in pieces])
    for piece, tokens in zip(pieces, tokens_of_pieces, strict=True):
        if piece == BREAK:
            builder.next_window()
        else:
            _add(builder, triggers, tokens, piece[1])
    return builder.windows()


def text_match_key(text: str, emphasis: Emphasis) -> str:
    """The `match_key` of a text, which contains that of every trigger in the text.

    Args:
        text: as for `lay_out`.
        emphasis: likewise.

    Raises:
        InvalidRequest: as `lay_out`.
    """
    return "".join(match_key(piece) for piece, _ in _pieces(text, emphasis))


def _pieces(text: str, emphasis: Emphasis) -> list[tuple[str, float]]:
    pieces = [(text, 1.0)] if emphasis == "none" else parse_attention(text)
    if not all(math.isfinite(weight) for _, weight in pieces):
        raise InvalidRequest("the prompt's brackets multiply to a weight that is not finite")
    return pieces


def _add(builder: WindowBuilder, triggers: Triggers, tokens: Sequence[int], weight: float) -> None:
    position = 0
    while position < len(tokens):
        match = triggers.at(tokens, position)
        if match is None:
            builder.add_token(tokens[position], weight)
            position += 1
        else:
            inversion, length = match
            builder.add_inversion(inversion, tokens[position], weight)
            position += length
