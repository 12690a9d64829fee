"""Parsing AND first, then schedules, and selecting the text of each UNet evaluation."""

import pytest

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.prompts.plan import (
    PromptPart,
    needs_negative,
    plan_negative,
    plan_prompt,
    texts_of,
)


def texts(part: PromptPart, calls: int) -> list[str]:
    return [part.text_at(call) for call in range(calls)]


def test_each_part_of_a_prompt_has_its_own_schedule() -> None:
    assert plan_prompt("a [b:c:2] AND [d|e] :0.5", 4) == (
        PromptPart(1.0, ((2, "a b"), (4, "a c"))),
        PromptPart(0.5, ((1, " d"), (2, " e"), (3, " d"), (4, " e"))),
    )


def test_and_splits_a_prompt_also_within_brackets() -> None:
    """As in A1111, which splits before it parses brackets."""
    assert plan_prompt("[a AND b:2]", 4) == (
        PromptPart(1.0, ((4, "[a"),)),
        PromptPart(1.0, ((4, " b:2]"),)),
    )


def test_a_negative_prompt_has_a_schedule_and_no_and() -> None:
    assert plan_negative("[a:b:2] AND c :2", 4) == PromptPart(
        1.0, ((2, "a AND c :2"), (4, "b AND c :2"))
    )


def test_a_hires_pass_continues_the_step_count() -> None:
    (part,) = plan_prompt("[a:b:1.5]", 4, first_pass_steps=10)
    assert part.schedule == ((2, "a"), (4, "b"))
    assert plan_negative("[a:b:11]", 4, first_pass_steps=10).schedule == ((1, "a"), (4, "b"))


def test_a_step_is_compared_with_evaluations_counted_from_0_as_a1111_does() -> None:
    (change,) = plan_prompt("[a:b:2]", 5)
    (alternation,) = plan_prompt("[a|b]", 5)
    (plain,) = plan_prompt("a", 5)

    assert texts(change, 5) == ["a", "a", "a", "b", "b"]
    assert texts(alternation, 5) == ["a", "a", "b", "a", "b"]
    assert texts(plain, 5) == ["a"] * 5
    assert change.text_at(99) == "b"


def test_every_text_is_listed_once() -> None:
    parts = (*plan_prompt("[a|b|a] AND b AND c", 6), plan_negative("[a:d:2]", 6))
    assert texts_of(parts) == ("a", "b", " b", " c", "d")


@pytest.mark.parametrize(
    ("prompt", "scale", "expected"),
    [
        ("a", 1.0, False),
        ("a [b:c:2]", 1.0, False),
        ("a :1", 1.0, False),
        ("a", 7.0, True),
        ("a", 0.5, True),
        ("a :1.2", 1.0, True),
        ("a AND b", 1.0, True),
    ],
)
def test_the_negative_prompt_is_needed_unless_it_cancels_out(
    prompt: str, scale: float, expected: bool
) -> None:
    assert needs_negative(plan_prompt(prompt, 5), scale) is expected


def test_a_weight_that_overflows_a_float_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        plan_prompt(f"a AND b:{'9' * 400}", 5)
