"""A prompt's text as windows of weighted tokens and vectors."""

import math
from collections.abc import Sequence
from typing import cast

from transformers import CLIPTokenizer

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.prompts.parse import BREAK, parse_attention
from imagefleet_worker.prompts.tokens import letters_of, tokenized
from imagefleet_worker.prompts.triggers import EmbeddingCandidate, Triggers
from imagefleet_worker.prompts.windows import WindowBuilder, WindowToken


def lay_out(
    tokenizer: CLIPTokenizer,
    text: str,
    candidates: Sequence[EmbeddingCandidate],
    emphasis: Emphasis,
) -> list[list[WindowToken]]:
    """The windows of a text, at least one, each of at most 75 places.

    Every piece of one weight is tokenized by itself, so that a word or a trigger with a bracket in
    its middle falls apart there.

    Args:
        tokenizer: CLIP's.
        text: with brackets for emphasis and without tags for LoRAs.
        offers: what the text may trigger.
        emphasis: with "none" brackets and BREAK are text like any other.

    Raises:
        InvalidRequest: a weight is no finite number, or two inversions have a token that is in it.
        ImagefleetError: an unusable one is triggered.
    """
    pieces = _pieces(text, emphasis)
    triggers = Triggers(tokenizer, candidates)
    layout = WindowBuilder(cast(int, tokenizer.convert_tokens_to_ids(",</w>")))
    tokens_of_pieces = tokenized(tokenizer, [piece for piece, _ in pieces])
    for piece, tokens in zip(pieces, tokens_of_pieces, strict=True):
        if piece == BREAK:
            layout.next_window()
        else:
            _add(layout, triggers, tokens, piece[1])
    return layout.windows()


def letters_in(text: str, emphasis: Emphasis) -> str:
    """A text's letters, among which are those of everything that it triggers.

    Args:
        text: as for `lay_out`; raises as that.
        emphasis: likewise.
    """
    return "".join(letters_of(piece) for piece, _ in _pieces(text, emphasis))


def _pieces(text: str, emphasis: Emphasis) -> list[tuple[str, float]]:
    pieces = [(text, 1.0)] if emphasis == "none" else parse_attention(text)
    if not all(math.isfinite(weight) for _, weight in pieces):
        raise InvalidRequest("the prompt's brackets multiply to a weight that is not finite")
    return pieces


def _add(layout: WindowBuilder, triggers: Triggers, tokens: Sequence[int], weight: float) -> None:
    position = 0
    while position < len(tokens):
        match = triggers.at(tokens, position)
        if match is None:
            layout.add_token(tokens[position], weight)
            position += 1
        else:
            inversion, length = match
            layout.add_inversion(inversion, tokens[position], weight)
            position += length
