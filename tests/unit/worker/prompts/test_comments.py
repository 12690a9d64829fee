"""Comments are removed from prompts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefleet_worker.prompts.comments import without_comments


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", "a cat"),
        ("# nothing", "\n"),
        ("a cat # black\nin snow", "a cat \nin snow"),
        ("a cat\n# black\nin snow", "a cat\nin snow"),
        ("# one\na cat\n# two", "\na cat\n"),
        # The first match includes the newline before the second.
        ("# one\n# two\na cat", "\n\na cat"),
        (r"a \# b", "a \\\n"),
        ("a#b\r\nc", "a\nc"),
    ],
)
def test_a_comment_extends_to_the_end_of_its_line(prompt: str, expected: str) -> None:
    assert without_comments(prompt) == expected


@given(st.text("a#\n "))
def test_only_comments_and_newlines_are_removed(prompt: str) -> None:
    result = without_comments(prompt)
    expected = "".join(re.split("#.*", prompt)).replace("\n", "")
    assert result.replace("\n", "") == expected
