"""A prompt's text as windows of weighted tokens and vectors."""

import math
from collections.abc import Sequence
from typing import cast

from transformers import CLIPTokenizer

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.fields import Emphasis

from .chunks import Layout, Place
from .parse import BREAK, parse_attention
from .triggers import TextualInversion, Triggers


def lay_out(
    tokenizer: CLIPTokenizer,
    text: str,
    inversions: Sequence[TextualInversion],
    emphasis: Emphasis,
) -> list[list[Place]]:
    """The windows of a text, at least one, each of at most 75 places.

    Every piece of one weight is tokenized by itself, so that a word or a trigger with a bracket in
    its middle falls apart there.

    Args:
        tokenizer: CLIP's.
        text: with brackets for emphasis and without tags for LoRAs.
        inversions: those that the text may trigger.
        emphasis: with "none" brackets and BREAK are text like any other.

    Raises:
        InvalidRequest: a weight is no finite number, or two inversions have the same token.
    """
    pieces = [(text, 1.0)] if emphasis == "none" else parse_attention(text)
    if not all(math.isfinite(weight) for _, weight in pieces):
        raise InvalidRequest("the prompt's brackets multiply to a weight that is not finite")
    triggers = Triggers(tokenizer, inversions)
    layout = Layout(cast(int, tokenizer.convert_tokens_to_ids(",</w>")))
    tokenized = tokenizer([piece for piece, _ in pieces], add_special_tokens=False, verbose=False)
    for piece, tokens in zip(pieces, tokenized.input_ids, strict=True):
        if piece == BREAK:
            layout.next_window()
        else:
            _add(layout, triggers, tokens, piece[1])
    return layout.windows()


def _add(layout: Layout, triggers: Triggers, tokens: Sequence[int], weight: float) -> None:
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
