"""A slow and plain parser of emphasis brackets, by their documented rules."""

from collections.abc import Sequence


def pieces(text: str) -> list[tuple[str, float]]:
    """The weighted pieces; a `ValueError` for a weight that is no number."""
    texts: list[str] = []
    factors: list[list[float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    literal = ""

    def flush() -> None:
        nonlocal literal
        words = split_breaks(literal) if literal else []
        texts.extend(words)
        factors.extend([-1.0] if index % 2 else [1.0] for index in range(len(words)))
        literal = ""

    def close(kind: str, factor: float) -> None:
        flush()
        for of_piece in factors[opened[kind].pop() :]:
            of_piece.append(factor)

    position = 0
    while position < len(text):
        rest, character = text[position:], text[position]
        position += 1
        weight = explicit_weight(rest)
        if character == "\\":
            flush()
            escaped = rest[1:2] if rest[1:2] in tuple("()[]\\") else ""
            texts.append(escaped)
            factors.append([1.0])
            position += len(escaped)
        elif character in opened:
            flush()
            opened[character].append(len(texts))
        elif weight and opened["("]:
            close("(", float(weight[0]))
            position += weight[1] - 1
        elif character == ")" and opened["("]:
            close("(", 1.1)
        elif character == "]" and opened["["]:
            close("[", 1 / 1.1)
        elif weight or character in ":)]":
            # Each of these is a piece of its own, so that no BREAK is found across it.
            flush()
            literal = rest[: weight[1] if weight else 1]
            position += len(literal) - 1
            flush()
        else:
            literal += character
    flush()
    for kind, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[kind]:
            for of_piece in factors[start:]:
                of_piece.append(factor)
    return joined(texts, [product(of_piece) for of_piece in factors])


def product(factors: Sequence[float]) -> float:
    total = factors[0]
    for factor in factors[1:]:
        total = total * factor
    return total


def joined(texts: Sequence[str], weights: Sequence[float]) -> list[tuple[str, float]]:
    result: list[tuple[str, float]] = []
    for text, weight in zip(texts, weights, strict=True):
        if result and result[-1][1] == weight:
            result[-1] = (result[-1][0] + text, weight)
        else:
            result.append((text, weight))
    return result or [("", 1.0)]


def explicit_weight(rest: str) -> tuple[str, int] | None:
    """The number in `: 1.3 )` at the start, and how many characters that takes."""
    if not rest.startswith(":"):
        return None
    start = 1 + len(rest[1:]) - len(rest[1:].lstrip())
    end = start + (rest[start : start + 1] in ("+", "-"))
    digits = end
    while rest[end : end + 1].isdecimal() or rest[end : end + 1] == ".":
        end += 1
    after = end + len(rest[end:]) - len(rest[end:].lstrip())
    return (rest[start:end], after + 1) if end > digits and rest[after : after + 1] == ")" else None


def split_breaks(text: str) -> list[str]:
    """Text, BREAK, text, BREAK, text; whitespace around a BREAK is dropped."""
    words: list[str] = []
    start = position = 0
    while (position := text.find("BREAK", position)) >= 0:
        neighbours = text[position - 1 : position] + text[position + 5 : position + 6]
        if not any(character.isalnum() or character == "_" for character in neighbours):
            words += [text[start:position].rstrip(), "BREAK"]
            start = position + 5
            while text[start : start + 1].isspace():
                start += 1
            position = start
        else:
            position += 1
    return [*words, text[start:]]
