"""Texts as CLIP's tokens, by the tokenizer that A1111 v1.10 has."""

import re
from collections.abc import Sequence

from ftfy import fix_text
from transformers import CLIPTokenizer

_SPACE = re.compile(r"\s+")


def tokenized(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without a start and an end.

    A1111's tokenizer mends a text first: curly quotes become straight ones, full-width letters and
    commas plain ones. The fast tokenizer does not, and CLIP was trained on mended texts. Lower case
    is Python's there, where a Greek word may end in another sigma.
    """
    # The tokenizer refuses an empty list.
    mended = [fix_text(text).lower() for text in texts]
    return tokenizer(mended, add_special_tokens=False, verbose=False).input_ids if texts else []


def letters_of(text: str) -> str:
    """A text without what makes no difference to its tokens, or only to where one begins.

    Where the tokens of one text stand within those of another, so do its letters.
    """
    return _SPACE.sub("", fix_text(text)).casefold()
