"""A slow and plain recursive-descent parser of prompt schedules, by their documented forms.

Nothing here uses the code under test. Every opening bracket is tried; if it fits no form it is a
character, and parsing continues after it.
"""

from collections.abc import Callable
from dataclasses import dataclass

Text = Callable[[int], str]
"""Returns the text at a step."""

SPECIAL = "[]():|"


class Unreadable(Exception):
    """The text cannot be parsed and is taken as it is."""


@dataclass
class Group:
    end: int
    text: Text


@dataclass
class Reference:
    """Parses one text for one pass."""

    source: str
    steps: int
    first_pass_steps: int | None

    def schedule(self) -> list[tuple[int, str]]:
        self.ends = {self.steps}
        try:
            parts = self.top_level()
        except Unreadable:
            return [(self.steps, self.source)]
        return [(end, "".join(part(end) for part in parts)) for end in sorted(self.ends)]

    def top_level(self) -> list[Text]:
        parts: list[Text] = []
        position = 0
        while position < len(self.source):
            ends = set(self.ends)
            group = self.group(position)
            if group:
                parts.append(group.text)
                position = group.end
                continue
            self.ends = ends
            if self.source[position] == "|":
                raise Unreadable
            if self.source[position] in SPECIAL:
                parts.append(constant(self.source[position]))
                position += 1
                continue
            end = self.plain(position)
            parts.append(constant(self.source[position:end]))
            position = end
        return parts

    def plain(self, position: int) -> int:
        """The end of the plain text that starts at a position."""
        while position < len(self.source) and self.source[position] not in SPECIAL:
            if self.source[position] == "\\":
                position += 1
                if position == len(self.source) or self.source[position] == "\n":
                    raise Unreadable
            position += 1
        return position

    def group(self, start: int) -> Group | None:
        """The bracket that opens at a position with its content, if it fits a form."""
        opening = self.source[start]
        if opening not in "([":
            return None
        segments: list[list[Text]] = [[]]
        starts = [start + 1]
        separators = ""
        position = start + 1
        while position < len(self.source):
            character = self.source[position]
            if character in ")]":
                return self.closed(opening + separators + character, segments, starts, position)
            if character in ":|":
                separators += character
                segments.append([])
                starts.append(position + 1)
                position += 1
            elif character in "([":
                inner = self.group(position)
                if inner is None:
                    return None
                segments[-1].append(inner.text)
                position = inner.end
            else:
                end = self.plain(position)
                segments[-1].append(constant(self.source[position:end]))
                position = end
        return None

    def closed(
        self, form: str, segments: list[list[Text]], starts: list[int], end: int
    ) -> Group | None:
        texts = [together(segment) for segment in segments]
        if form in ("()", "[]"):
            return Group(end + 1, around(form[0], texts, form[-1]))
        if form == "(:)":
            return Group(end + 1, around("(", texts, ")"))
        if form[0] + form[-1] == "[]" and set(form[1:-1]) == {"|"}:
            self.ends |= set(range(1, self.steps + 1))
            return Group(end + 1, lambda step: texts[(step - 1) % len(texts)](step))
        if form in ("[:]", "[::]"):
            last = self.last_step(self.source[starts[-1] : end])
            if last is not None:
                if last >= 1:
                    self.ends.add(last)
                before = texts[0] if form == "[::]" else constant("")
                return Group(end + 1, lambda step: (before if step <= last else texts[-2])(step))
        return None

    def last_step(self, written: str) -> int | None:
        try:
            number = float(written)
        except ValueError:
            return None
        if "_" in written or not written.isascii() or not any(map(str.isdigit, written)):
            return None
        if self.first_pass_steps is None:
            exact = number * self.steps if "." in written else number
        elif "." in written:
            exact = (number - 1) * self.steps
        else:
            exact = number - self.first_pass_steps
        return self.steps if exact >= self.steps else max(int(exact), 0) if exact > 0 else 0


def constant(text: str) -> Text:
    return lambda _step: text


def together(texts: list[Text]) -> Text:
    return lambda step: "".join(text(step) for text in texts)


def around(opening: str, texts: list[Text], closing: str) -> Text:
    return lambda step: opening + ":".join(text(step) for text in texts) + closing
