"""Tokenizing texts for CLIP as A1111 v1.10 does."""

import re
from collections.abc import Sequence

from ftfy import fix_text
from transformers import CLIPTokenizer

_SPACE = re.compile(r"\s+")


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without start and end tokens.

    A1111's tokenizer cleans texts with ftfy first: curly quotes become straight, full-width letters
    and commas plain. The fast tokenizer does not, and CLIP was trained on cleaned texts. Lower case
    is Python's, as in A1111, which matters for a Greek final sigma.
    """
    # The tokenizer refuses an empty list.
    cleaned = [fix_text(text).lower() for text in texts]
    return tokenizer(cleaned, add_special_tokens=False, verbose=False).input_ids if texts else []


def match_key(text: str) -> str:
    """A key for a quick test whether a text contains another: no whitespace, case folded.

    If the tokens of one text occur within those of another, its key occurs within the other's.
    """
    return _SPACE.sub("", fix_text(text)).casefold()
