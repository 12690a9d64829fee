"""Splitting prompts at AND gives the parts and weights of A1111's rules."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.prompts.compose import split_and


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("", [("", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        (
            "a cat :1.2 AND a dog AND a penguin :2.2",
            [("a cat", 1.2), (" a dog", 1), (" a penguin", 2.2)],
        ),
        ("a AND b:-0.5", [("a", 1.0), (" b", -0.5)]),
        ("a:0 AND b : +2. ", [("a", 0.0), (" b", 2.0)]),
        ("AND", [("", 1.0), ("", 1.0)]),
        ("SAND AND ANDY and AND_", [("SAND", 1.0), (" ANDY and AND_", 1.0)]),
        ("(a AND b:1.2)", [("(a", 1.0), (" b:1.2)", 1.0)]),
        ("a :1 :2", [("a :1", 2.0)]),
        ("a:.5", [("a", 0.5)]),
        ("a:1e3", [("a:1e3", 1.0)]),
        ("a:1.2.3", [("a:1.2.3", 1.0)]),
        ("ratio 16:9", [("ratio 16", 9.0)]),
        ("[a:b:0.5]", [("[a:b:0.5]", 1.0)]),
        ("a\nb :2\n", [("a\nb", 2.0)]),
    ],
)
def test_parts_and_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert split_and(text) == expected


@given(
    st.lists(
        st.sampled_from([*" AND\n:1.-+_a(", "AND", " AND ", "2.5", " :1.2", "\u0663", "\u3000"]),
        max_size=12,
    ).map("".join)
)
@settings(max_examples=1000, deadline=None)
def test_any_text_gives_the_parts_of_the_reference(text: str) -> None:
    assert split_and(text) == _reference(text)


def _reference(text: str) -> list[tuple[str, float]]:
    """Tries every position for an AND, and every position for the start of a weight."""
    parts = [""]
    position = 0
    while position < len(text):
        around = text[position - 1 : position] + text[position + 3 : position + 4]
        word = any(character.isalnum() or character == "_" for character in around)
        if text[position : position + 3] == "AND" and not word:
            parts.append("")
            position += 3
        else:
            parts[-1] += text[position]
            position += 1
    return [_split_weight(part) for part in parts]


def _split_weight(part: str) -> tuple[str, float]:
    for end in range(len(part) + 1):
        rest = part[end:].strip()
        if not rest:
            return part[:end], 1.0
        number = rest[1:].strip()
        digits = number[1:] if number[:1] in ("+", "-") else number
        whole, point, fraction = digits.partition(".")
        if rest[0] != ":" or not all(d.isdecimal() for d in whole + fraction):
            continue
        if fraction or (whole and (point or digits == whole)):
            return part[:end], float(number)
    raise AssertionError("the empty rest is always reached")


def test_a_weight_that_overflows_a_float_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="too large"):
        split_and(f"a AND b:{'9' * 400}")


@pytest.mark.parametrize("unit", [":", " ", ": ", ":1", "1", ".", "AND ", "AND:1", "\n", "a AND"])
def test_a_long_text_takes_no_longer_than_its_length_allows(unit: str) -> None:
    """100 000 characters: A1111's pattern backtracks and would not finish."""
    started_s = time.monotonic()
    split_and(unit * (100_000 // len(unit)) + "x")
    assert time.monotonic() - started_s < 10
