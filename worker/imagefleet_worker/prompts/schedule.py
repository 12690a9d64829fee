r"""Prompt editing: parsing a prompt that changes during sampling into a schedule of texts.

`[a:b:0.4]` is a, then b; `[b:3]` is nothing, then b; `[a::3]` is a, then nothing; `[a|b|c]`
alternates every step. The forms nest, also within emphasis; `\[`, `\|` and the like are the
characters themselves. Semantics are A1111 v1.10's (with "old prompt editing timelines" off), whose
grammar is ambiguous and takes cubic time; this parser reads every character once.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# A backslash and the character it escapes are text. A backslash before a newline or at the end of
# the text matches nothing.
_TOKEN = re.compile(r"(?:[^\\\[\]():|]+|\\.)+|[\[\]():|]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_OPENING = {")": "(", "]": "["}


def parse_schedule(
    text: str, steps: int, first_pass_steps: int | None = None
) -> list[tuple[int, str]]:
    """The texts in order, each with the last step at which it is used; the final one is `steps`.

    A step is one evaluation of the UNet, so a second-order solver has two per requested step. A
    whole number is a step; one with a decimal point is a fraction of the steps, 1.0 being all of
    them. Brackets that fit none of the forms are text, but brackets within them are still parsed.
    A text with a bar outside any alternation, or with a backslash that escapes nothing, is not
    parsed at all.

    If brackets are unbalanced, A1111's result depends on its process's hash seed; this parser
    returns the variant in which every bracket that can be part of a form is. As in A1111, adjacent
    texts may be equal: an alternation gives a text for each step, and a change one at its step,
    even if the text is the same. Time and result size are at most the length times `steps`.

    Args:
        text: without LoRA tags and without AND.
        steps: of the pass, at least 1.
        first_pass_steps: for a hires pass, the steps of the first pass. Numbers then count from the
            start of the first pass: steps continue, and fractions from 1.0 to 2.0 are the hires
            pass.
    """
    parser = _Parser(steps, first_pass_steps)
    items = parser.parse(text)
    if items is None:
        return [(steps, text)]
    return [(step, _text_at(step, items)) for step in sorted(parser.last_steps)]


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    before: "Sequence[_Item]"
    after: "Sequence[_Item]"
    last_step: int
    """Last step of `before`; below 1, `before` is never used."""

    def at(self, step: int) -> "Sequence[_Item]":
        return self.before if step <= self.last_step else self.after


@dataclass(frozen=True, slots=True, eq=False)
class _Alternation:
    options: "Sequence[Sequence[_Item]]"

    def at(self, step: int) -> "Sequence[_Item]":
        return self.options[(step - 1) % len(self.options)]


_Item = str | _Change | _Alternation


def _text_at(step: int, items: Sequence[_Item]) -> str:
    pieces: list[str] = []
    # An explicit stack: brackets may nest deeper than Python's recursion limit.
    entered: list[Iterator[_Item]] = [iter(items)]
    while entered:
        for item in entered[-1]:
            if not isinstance(item, str):
                entered.append(iter(item.at(step)))
                break
            pieces.append(item)
        else:
            entered.pop()
    return "".join(pieces)


@dataclass(slots=True)
class _Bracket:
    kind: str
    index: int
    """Index among the items."""
    separators: list[int] = field(default_factory=list[int])
    """Indices of the colons and bars directly in it."""


class _Parser:
    def __init__(self, steps: int, first_pass_steps: int | None) -> None:
        self._steps = steps
        self._first_pass_steps = first_pass_steps
        self.last_steps = {steps}
        self._items: list[_Item] = []
        self._opened: list[_Bracket] = []
        self._bars_outside_alternations = 0

    def parse(self, text: str) -> list[_Item] | None:
        """The items of the text; None: it cannot be parsed.

        Any two brackets that fit a form are nested or disjoint, because their content is balanced,
        so there is only one way to pair them. A closing bracket that makes no such pair is content
        that none of the open brackets around it may have, so all of those are text.
        """
        end = 0
        for match in _TOKEN.finditer(text):
            if match.start() != end:
                return None
            end = match.end()
            token = match[0]
            self._items.append(token)
            if token in ("(", "["):
                self._opened.append(_Bracket(token, len(self._items) - 1))
            elif token in (":", "|"):
                self._bars_outside_alternations += token == "|"
                if self._opened:
                    self._opened[-1].separators.append(len(self._items) - 1)
            elif token in _OPENING and not (self._opened and self._closed(token)):
                self._opened.clear()
        return None if self._bars_outside_alternations or end < len(text) else self._items

    def _closed(self, closing: str) -> bool:
        """Whether the last item closes the innermost bracket; if so, they become one item."""
        bracket = self._opened.pop()
        separators = [self._items[index] for index in bracket.separators]
        if bracket.kind != _OPENING[closing]:
            return False
        if closing == ")":
            return separators in ([], [":"])
        if not separators:
            return True
        parts = self._parts(bracket)
        if ":" not in separators:
            self._bars_outside_alternations -= len(separators)
            self.last_steps.update(range(1, self._steps + 1))
            self._items[bracket.index :] = [_Alternation(parts)]
            return True
        last_step = self._last_step(parts[-1])
        if last_step is None or separators not in ([":"], [":", ":"]):
            return False
        if last_step >= 1:
            self.last_steps.add(last_step)
        before, after = parts[0] if len(parts) == 3 else (), parts[-2]
        self._items[bracket.index :] = [_Change(before, after, last_step)]
        return True

    def _parts(self, bracket: _Bracket) -> list[list[_Item]]:
        starts = [bracket.index, *bracket.separators]
        ends = [*bracket.separators, len(self._items) - 1]
        return [self._items[start + 1 : end] for start, end in zip(starts, ends, strict=True)]

    def _last_step(self, when: Sequence[_Item]) -> int | None:
        """The step that a change's number stands for, at most the last; None: not a number."""
        match = _NUMBER.fullmatch(when[0]) if len(when) == 1 and isinstance(when[0], str) else None
        if match is None:
            return None
        number, hires = float(match[1]), self._first_pass_steps is not None
        if "." in match[1]:
            step = (number - hires) * self._steps
        else:
            step = number - (self._first_pass_steps or 0)
        # Clamped before the conversion to int: a float may be infinite.
        return int(min(max(step, 0.0), self._steps))
