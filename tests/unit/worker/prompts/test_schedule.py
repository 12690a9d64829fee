"""Prompt schedules against A1111's own results and a reference parser, and on hostile input."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefleet_worker.prompts.schedule import parse_schedule
from tests.unit.worker.prompts.reference_schedule import Reference

_FRAGMENTS = st.sampled_from(
    [
        *("(", ")", "[", "]", ":", "|", "a", " b ", "[a:", "[a|", ":2]", ": 3 ]", ":0.5]"),
        *(":1.5]", ":-1]", ":1e0]", ":2.]", ":.5]", "|c]", "x:1.1)", "\\[", "\\|", "\\", "\n"),
    ]
)


def _fitting() -> st.SearchStrategy[str]:
    """Texts whose brackets mostly fit a form."""
    numbers = st.sampled_from(["2", "0.5", "1.5", " 3 ", "7", "0", "-1", "2.", ".25", "1e0", "x"])
    words = st.sampled_from(["a", " b", "", " ", "\\]", "1"])

    def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            inner.map("({})".format),
            inner.map("[{}]".format),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]}:{pair[1]})"),
            st.tuples(inner, numbers).map(lambda pair: f"[{pair[0]}:{pair[1]}]"),
            st.tuples(inner, inner, numbers).map(lambda three: f"[{':'.join(three)}]"),
            st.lists(inner, min_size=2, max_size=4).map(lambda options: f"[{'|'.join(options)}]"),
        )

    return st.recursive(words, nested, max_leaves=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(10, "a [{b|d{:.5] c")]),  # A1111's docstring expects more.
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)]),
        ("[fe|]male", [(step, "female" if step % 2 else "male") for step in range(1, 11)]),
        ("[fe|||]male", [(n, "female" if n in (1, 5, 9) else "male") for n in range(1, 11)]),
    ],
)
def test_a1111s_documented_examples(text: str, expected: list[tuple[int, str]]) -> None:
    assert parse_schedule(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a [b:.5] c", [(10, "a b c")]), ("a [b:1.5] c", [(5, "a  c"), (10, "a b c")])],
)
def test_a1111s_documented_examples_of_a_hires_pass(
    text: str, expected: list[tuple[int, str]]
) -> None:
    assert parse_schedule(text, 10, first_pass_steps=10) == expected


def test_a1111s_example_of_a_whole_prompt() -> None:
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    lake = "fantasy landscape with a lake and an oak"
    assert parse_schedule(text, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, f"{lake} in foreground in background shoddy"),
        (60, f"{lake} in foreground in background masterful"),
        (75, f"{lake} in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


def test_random_texts_give_what_a1111_gives() -> None:
    """Given: random texts with the results of A1111 v1.10's parser (on lark 1.1.2, which it pins)
    for 5 steps, and for 4 steps of a hires pass after them, the same for each of 27 hash seeds."""
    rows = json.loads((Path(__file__).parent / "schedules.json").read_text())
    assert len(rows) > 400
    for text, first, hires in rows:
        assert parse_schedule(text, 5) == [tuple(row) for row in first], text
        assert parse_schedule(text, 4, 5) == [tuple(row) for row in hires], text


@given(
    _fitting() | st.lists(_FRAGMENTS, max_size=16).map("".join), st.integers(1, 6), st.booleans()
)
@settings(max_examples=1000, deadline=None)
def test_any_text_gives_the_schedule_of_the_reference(text: str, steps: int, hires: bool) -> None:
    first_pass_steps = 3 if hires else None
    expected = Reference(text, steps, first_pass_steps).schedule()
    assert parse_schedule(text, steps, first_pass_steps) == expected


@given(st.text(max_size=200), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_any_unicode_gives_the_schedule_of_the_reference(text: str, steps: int) -> None:
    assert parse_schedule(text, steps) == Reference(text, steps, None).schedule()


@pytest.mark.parametrize(
    ("number", "last_step"),
    [("0.25", 2), (".25", 2), ("1.", 10), ("1.0", 10), ("1.5", 10), ("1", 1), ("3e0", 3)],
)
def test_a_number_with_a_decimal_point_is_a_fraction_of_the_steps(
    number: str, last_step: int
) -> None:
    assert parse_schedule(f"[a:b:{number}]", 10)[0] == (last_step, "a")


@pytest.mark.parametrize("number", ["0", "0.0", "-2", "-.5", "-1e999"])
def test_a_text_that_ends_before_the_first_step_is_never_used(number: str) -> None:
    assert parse_schedule(f"[a:b:{number}]", 10) == [(10, "b")]


@pytest.mark.parametrize("number", ["1e999", "1.0e999", "9" * 5000])
def test_a_huge_number_is_the_last_step(number: str) -> None:
    """A1111 fails with an OverflowError."""
    assert parse_schedule(f"[a:b:{number}]", 10) == [(10, "a")]


def test_whole_numbers_of_a_hires_pass_count_from_the_first_pass() -> None:
    assert parse_schedule("[a:b:12]", 8, first_pass_steps=10) == [(2, "a"), (8, "b")]
    assert parse_schedule("[a:b:4]", 8, first_pass_steps=10) == [(8, "b")]


_UNITS = [
    *("(", "[", ")", "]", ":", "|", "[a:", "[a|", "(a:", "[[a:b:", "a", "\\[", "[a:1", ":1", " "),
    *("[]", "()", "[a:2]", "[|]", "[:2]", "1", "[a:1:2]", "[(", "[a|b:"),
]
_CLOSINGS = ["", ":2]", "|b]", ")", "]", ":0.5]"]


@pytest.mark.parametrize("closing", _CLOSINGS)
@pytest.mark.parametrize("unit", _UNITS)
def test_the_work_is_proportional_to_the_length(unit: str, closing: str) -> None:
    """20 000 characters, nested 10 000 deep where the closing fits."""
    half = 10_000 // max(len(unit), len(closing), 1)
    short = _calls(unit * (half // 4) + closing * (half // 4))
    long = _calls(unit * half + closing * half)
    assert long <= 4.5 * short + 100


def _calls(text: str) -> int:
    """Number of Python and C function calls while parsing."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        schedule = parse_schedule(text, 3)
    finally:
        sys.setprofile(None)
    assert schedule[-1][0] == 3
    assert all(len(step_text) <= len(text) for _, step_text in schedule)
    return calls


@given(
    st.lists(st.sampled_from([*"[]():|\\ ab12.e+-\n"]), min_size=1, max_size=12).map("".join),
    st.sampled_from([None, 3]),
)
@settings(max_examples=100, deadline=None)
def test_no_long_text_fails(unit: str, first_pass_steps: int | None) -> None:
    text = (unit * 20_000)[:20_000]
    schedule = parse_schedule(text, 3, first_pass_steps)
    assert [step for step, _ in schedule][-1] == 3
