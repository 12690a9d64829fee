"""Syntax of infotexts: prompts, and a line of labels with values, quoted as in A1111.

Parsing takes linear time for any text: no regular expression here can backtrack.
"""

import json
from collections.abc import Mapping
from json import JSONDecodeError, JSONDecoder

from imagefleet_shared.errors import InvalidRequest

_NEGATIVE = "Negative prompt:"
_FIRST_LABEL = "Steps:"
_DECODER = JSONDecoder(strict=False)


def number(value: float) -> str:
    """The shortest text that reads back as the same number; integers without a point."""
    return repr(float(value)).removesuffix(".0")


def join_text(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """Prompt, negative prompt and fields as one text."""
    lines = [prompt] if prompt else []
    if negative_prompt:
        lines.append(f"{_NEGATIVE} {negative_prompt}")
    return "\n".join([*lines, join_fields(fields)])


def join_fields(fields: Mapping[str, object]) -> str:
    """`Label: value, …`; fields that are None are left out."""
    return ", ".join(
        f"{label}: {_quoted(str(value))}" for label, value in fields.items() if value is not None
    )


def split_text(text: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Prompt, negative prompt, and the labels with their values in order.

    Lines after the line of labels, as some extensions of A1111 add them, are labels too.

    Raises:
        InvalidRequest: there is no line of labels.
    """
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    last = next((i for i in reversed(range(len(lines))) if lines[i].startswith(_FIRST_LABEL)), None)
    if last is None:
        raise InvalidRequest(
            "the text tells no generation parameters: no line starts with 'Steps:', as A1111 and "
            "Imagefleet write it"
        )
    first = next((i for i in range(last) if lines[i].startswith(_NEGATIVE)), last)
    negative = "\n".join(lines[first:last]).removeprefix(_NEGATIVE).removeprefix(" ")
    pairs = split_fields(lines[last])
    for line in lines[last + 1 :]:
        label, _, value = line.partition(":")
        pairs.append((label.strip(), value.strip()))
    return "\n".join(lines[:first]), negative, pairs


def split_fields(line: str) -> list[tuple[str, str]]:
    """The labels of a line and their values, unquoted; a label alone has an empty value."""
    pairs: list[tuple[str, str]] = []
    last_brace, position = line.rfind("}"), 0
    while position < len(line):
        comma = line.find(",", position)
        end = len(line) if comma < 0 else comma
        colon = line.find(":", position, end)
        if colon < 0:
            label, value = line[position:end], ""
        else:
            label, start = line[position:colon], colon + 1
            while start < end and line[start].isspace():
                start += 1
            value, end = _value(line, start, end, last_brace)
        if label.strip():
            pairs.append((label.strip(), value))
        position = end + 1
    return pairs


def _value(line: str, start: int, end: int, last_brace: int) -> tuple[str, int]:
    """The value that begins at `start`, and the position of the comma after it."""
    if line.startswith('"', start):
        try:
            value, after = _DECODER.raw_decode(line, start)
        except JSONDecodeError:
            pass
        else:
            if after == len(line) or line[after] == ",":
                return value, after
    elif line.startswith("{", start) and start < last_brace:
        # An older A1111's `Hashes: {…}`, which is not quoted.
        after = line.index("}", start) + 1
        if after == len(line) or line[after] == ",":
            return line[start:after], after
    return line[start:end].strip(), end


def _quoted(value: str) -> str:
    plain = value and value == value.strip() and value[0] not in '"{'
    if plain and not any(c in value for c in ",\n\r:"):
        return value
    return json.dumps(value, ensure_ascii=False)
