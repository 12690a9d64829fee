"""Comments in a prompt: from `#` to the end of the line."""

import re

_LINE = re.compile(r"(?:^|\n)#[^\n]*(?:\n|$)")
_END_OF_LINE = re.compile(r"#[^\n]*(?:\n|$)")


def without_comments(text: str) -> str:
    """Replace each comment with a newline, as A1111 v1.10 does.

    Comments are removed before anything else is parsed: LoRA tags in a comment are ignored, and no
    backslash escapes a `#`.
    """
    return _END_OF_LINE.sub("\n", _LINE.sub("\n", text))
