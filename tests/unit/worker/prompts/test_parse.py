"""Emphasis brackets are parsed into A1111's pieces, with bitwise equal weights."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.prompts.parse import BREAK, parse_attention
from tests.unit.worker.prompts.reference_parser import pieces as reference_pieces

_WORDS = (
    "( ( [ [ ) ) ] ] ( ) : , . \\ \\( \\) \\[ \\] \\\\ a b cat dog é 日本 _ - + 1 1.3 :1.3) :0.5) "
    ": :-2) :+.5) :1.2.3) :.) BREAK xBREAK BREAKx AND <lora:x:1>"
)
_SPACED = [" ", "  ", "\n", "\t", " BREAK ", " :1.2 )", ": 1.2)", ":1.3]"]
_FRAGMENTS = st.sampled_from([*_WORDS.split(), *_SPACED])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        ("unbalanced)]", [("unbalanced)]", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a (cat:1.3)", [("a ", 1.0), ("cat", 1.3)]),
        ("(cat: 1.3 )", [("cat", 1.3)]),
        ("(cat:-.5)", [("cat", -0.5)]),
        ("cat:1.3)", [("cat:1.3)", 1.0)]),
        ("[cat:1.3]", [("cat:1.3", 1 / 1.1)]),
        ("(cat:1e3)", [("cat:1e3", 1.1)]),
        (r"a\b \\ \(", [(r"ab \ (", 1.0)]),
        ("a\\", [("a", 1.0)]),
        ("", [("", 1.0)]),
        ("([])", [("", 1.0)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("BREAK", [("", 1.0), BREAK, ("", 1.0)]),
        ("a BREAK \n BREAK", [("a", 1.0), BREAK, ("", 1.0), BREAK, ("", 1.0)]),
        ("xBREAK BREAK_", [("xBREAK BREAK_", 1.0)]),
        ("break", [("break", 1.0)]),
    ],
)
def test_documented_examples(text: str, pieces: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == pieces


def test_weights_multiply_in_the_order_in_which_brackets_close() -> None:
    assert parse_attention("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ]


def test_a_break_in_brackets_is_a_word_as_in_a1111() -> None:
    assert parse_attention("(a BREAK b)") == [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]


@pytest.mark.parametrize("text", ["(a:1.2.3)", "(a:.)", "((a:..) b"])
def test_a_weight_that_is_not_a_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no number"):
        parse_attention(text)


@given(st.lists(_FRAGMENTS, max_size=30).map("".join))
@settings(max_examples=1000)
def test_any_text_gives_the_pieces_of_the_reference(text: str) -> None:
    try:
        expected = reference_pieces(text)
    except ValueError:
        with pytest.raises(InvalidRequest):
            parse_attention(text)
    else:
        assert parse_attention(text) == expected


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_any_unicode_gives_the_pieces_of_the_reference(text: str) -> None:
    assert parse_attention(text) == reference_pieces(text)


def test_extreme_nesting_overflows_to_infinity_without_a_warning() -> None:
    assert parse_attention("(" * 10_000 + "a") == [("a", math.inf)]


@pytest.mark.parametrize(
    "unit",
    ["(", "(a", "(a[b", "[(", ":", ":1", ": ", ":1 ", " ", "\\", "a BREAK ", "BREAK", "(a:1.1)"],
)
def test_a_long_text_takes_no_longer_than_its_length_allows(unit: str) -> None:
    """100 000 characters: quadratic backtracking would take minutes."""
    started_s = time.monotonic()
    parse_attention(unit * (100_000 // len(unit)) + "x")
    assert time.monotonic() - started_s < 10
