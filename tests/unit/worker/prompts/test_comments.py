"""Comments are no part of a prompt."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefleet_worker.prompts.comments import without_comments


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a cat", "a cat"),
        ("# nothing", "\n"),
        ("a cat # black\nin snow", "a cat \nin snow"),
        ("a cat\n# black\nin snow", "a cat\nin snow"),
        ("# one\na cat\n# two", "\na cat\n"),
        # The first takes the second's beginning of the line with it.
        ("# one\n# two\na cat", "\n\na cat"),
        (r"a \# b", "a \\\n"),
        ("a#b\r\nc", "a\nc"),
    ],
)
def test_a_comment_goes_up_to_the_end_of_its_line(prompt: str, read: str) -> None:
    assert without_comments(prompt) == read


@given(st.text("a#\n "))
def test_only_comments_and_ends_of_lines_go(prompt: str) -> None:
    read = without_comments(prompt)
    kept = "".join(re.split("#.*", prompt)).replace("\n", "")
    assert read.replace("\n", "") == kept
