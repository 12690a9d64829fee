r"""A prompt that changes while it is drawn, as the texts that it stands for, one after another.

`[a:b:0.4]` is a, then b; `[b:3]` nothing, then b; `[a::3]` a, then nothing; `[a|b|c]` another one
each step. They nest, also within emphasis; `\[`, `\|` and the like stand for the characters. The
meaning is A1111 v1.10's (its "old prompt editing timelines" off), whose grammar is ambiguous and
takes cubic time; this reads every character once.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Text is what a backslash escapes too, but for a line's end: that one, and a backslash before
# nothing, are in no match.
_TOKEN = re.compile(r"(?:[^\\\[\]():|]+|\\.)+|[\[\]():|]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_OPENING = {")": "(", "]": "["}


def parse_schedule(
    text: str, steps: int, first_pass_steps: int | None = None
) -> list[tuple[int, str]]:
    """The texts in their order, each with the last step that it is for; the last one's is `steps`.

    A step is one evaluation of the UNet: a second-order solver makes two of each step it was given.
    A whole number is a step, one with a point a share of the steps, 1.0 being all of them. Brackets
    that fit none of the forms are text; others within them still count. But a text with a bar that
    is in no alternation, or with a backslash that escapes nothing, is one text, as it stands.

    Where brackets are left over, A1111 itself reads a text in one way or another, by the chance of
    its process's hash seed; this is the one of its ways in which all brackets count that can. As
    there, neighbours may be equal: an alternation gives a text for each step, and a change one at
    its step, whether or not they show. Time and result are within the length times `steps`.

    Args:
        text: without tags for LoRAs and without AND.
        steps: of the pass, at least 1.
        first_pass_steps: for a hires pass, the steps of the pass before it, from whose beginning
            the numbers count: steps go on, and shares from 1.0 to 2.0 are the hires pass's.
    """
    reader = _Reader(steps, first_pass_steps)
    items = reader.read(text)
    if items is None:
        return [(steps, text)]
    return [(step, _text_at(step, items)) for step in sorted(reader.last_steps)]


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    before: "Sequence[_Item]"
    after: "Sequence[_Item]"
    last_step: int
    """Of what is before; below 1: it is never seen."""

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
    # A stack of its own: brackets nest deeper than Python's calls may.
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
    place: int
    """Among the items."""
    separators: list[int] = field(default_factory=list[int])
    """Places of the colons and bars directly in it."""


class _Reader:
    def __init__(self, steps: int, first_pass_steps: int | None) -> None:
        self._steps = steps
        self._first_pass_steps = first_pass_steps
        self.last_steps = {steps}
        self._items: list[_Item] = []
        self._opened: list[_Bracket] = []
        self._loose_bars = 0

    def read(self, text: str) -> list[_Item] | None:
        """What the text consists of; None: it cannot be read.

        Of brackets that fit a form, any two are nested or apart, because what is within them is
        balanced; so there is one way to pair them. A closing one that makes no such pair leaves
        something in all brackets open around it that they must not have: they are text.
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
                self._loose_bars += token == "|"
                if self._opened:
                    self._opened[-1].separators.append(len(self._items) - 1)
            elif token in _OPENING and not (self._opened and self._closed(token)):
                self._opened.clear()
        return None if self._loose_bars or end < len(text) else self._items

    def _closed(self, closing: str) -> bool:
        """Whether the last item and the innermost bracket make a pair; then they are one item."""
        bracket = self._opened.pop()
        separators = [self._items[place] for place in bracket.separators]
        if bracket.kind != _OPENING[closing]:
            return False
        if closing == ")":
            return separators in ([], [":"])
        if not separators:
            return True
        parts = self._parts(bracket)
        if ":" not in separators:
            self._loose_bars -= len(separators)
            self.last_steps.update(range(1, self._steps + 1))
            self._items[bracket.place :] = [_Alternation(parts)]
            return True
        last_step = self._last_step(parts[-1])
        if last_step is None or separators not in ([":"], [":", ":"]):
            return False
        if last_step >= 1:
            self.last_steps.add(last_step)
        before, after = parts[0] if len(parts) == 3 else (), parts[-2]
        self._items[bracket.place :] = [_Change(before, after, last_step)]
        return True

    def _parts(self, bracket: _Bracket) -> list[list[_Item]]:
        starts = [bracket.place, *bracket.separators]
        ends = [*bracket.separators, len(self._items) - 1]
        return [self._items[start + 1 : end] for start, end in zip(starts, ends, strict=True)]

    def _last_step(self, when: Sequence[_Item]) -> int | None:
        """The step that a change's number means, at most the last; None: it is no number."""
        match = _NUMBER.fullmatch(when[0]) if len(when) == 1 and isinstance(when[0], str) else None
        if match is None:
            return None
        number, hires = float(match[1]), self._first_pass_steps is not None
        if "." in match[1]:
            step = (number - hires) * self._steps
        else:
            step = number - (self._first_pass_steps or 0)
        # Before it is a whole number: a float may be infinite.
        return int(min(max(step, 0.0), self._steps))
