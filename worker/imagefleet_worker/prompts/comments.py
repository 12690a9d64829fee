"""Comments in a prompt: `#` and all behind it on its line."""

import re

_LINE = re.compile(r"(?:^|\n)#[^\n]*(?:\n|$)")
_END_OF_LINE = re.compile(r"#[^\n]*(?:\n|$)")


def without_comments(text: str) -> str:
    """A prompt with a line's end in place of each comment, as A1111 v1.10 reads it.

    It does so before all else: tags of LoRAs in a comment do not count, no backslash keeps a `#`.
    """
    return _END_OF_LINE.sub("\n", _LINE.sub("\n", text))
