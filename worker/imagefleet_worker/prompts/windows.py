"""Tokens and vectors of any number, laid out in the fixed windows that CLIP reads.

CLIP sees 77 tokens: a start token, 75 of text, an end token. A longer text becomes several windows
of 75, each with its own start and end, as A1111 v1.10 does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imagefleet_shared.errors import PromptTooLong
from imagefleet_worker.prompts.triggers import PromptEmbedding

START, END = 49406, 49407
"""CLIP's tokens for the start and the end of a text."""
WINDOW = 75
"""Places for text in a window."""
COMMA_BACKTRACK = 20
"""At a window's end, text after a comma at most this many places back moves to the next window."""

_UNREAD = 0  # The token at a vector's place; any would do but the end token, which CLIP looks for.


@dataclass(frozen=True, slots=True)
class WindowToken:
    """What stands in one place of a window."""

    token: int
    """In CLIP's vocabulary; not read where a vector stands."""
    weight: float
    """The emphasis on it; 1 for none."""
    inversion: PromptEmbedding | None = None
    """The textual inversion whose vector stands here."""
    row: int = 0
    """Which of its vectors."""


class WindowBuilder:
    """Windows being filled from left to right; none has more than 75 places.

    Args:
        comma: the tokenizer's token for a comma.
    """

    def __init__(self, comma: int) -> None:
        self._comma = comma
        self._full: list[list[WindowToken]] = []
        self._open: list[WindowToken] = []

    def add_token(self, token: int, weight: float) -> None:
        """Put a token in the next place."""
        self._make_room(token)
        self._open.append(WindowToken(token, weight))

    def add_inversion(self, inversion: PromptEmbedding, token: int, weight: float) -> None:
        """Put all vectors of an inversion into one window.

        Args:
            inversion: it has at most 75 vectors.
            token: the first of those that it stands for.
            weight: the emphasis on them.
        """
        self._make_room(token)
        length = inversion.embedding.length
        if len(self._open) + length > WINDOW:
            self.next_window()
        self._open += [WindowToken(_UNREAD, weight, inversion, row) for row in range(length)]

    def next_window(self) -> None:
        """End the window, however full; its other places stay empty."""
        self._full.append(self._open)
        self._open = []

    def windows(self) -> list[list[WindowToken]]:
        """The windows with what they hold; an empty text has one, a break at the end adds none."""
        return [*self._full, self._open] if self._open or not self._full else self._full

    def _make_room(self, token: int) -> None:
        if len(self._open) < WINDOW:
            return
        # Text moves along with its continuation; a comma continues nothing.
        moved = [] if token == self._comma else self._after_last_comma()
        del self._open[WINDOW - len(moved) :]
        self.next_window()
        self._open = moved

    def _after_last_comma(self) -> list[WindowToken]:
        for back in range(COMMA_BACKTRACK):
            if self._open[WINDOW - 1 - back].token == self._comma:
                return self._open[WINDOW - back :]
        return []


def token_ids(places: list[WindowToken], padding: int) -> list[int]:
    """The 77 tokens of a window.

    Args:
        places: at most 75.
        padding: token for the places after an early end.
    """
    text = [place.token for place in places]
    return [START, *text, END, *[padding] * (WINDOW - len(text))]


def weights(places: list[WindowToken]) -> list[float]:
    """The 77 weights of a window; start, end and padding have 1."""
    text = [place.weight for place in places]
    return [1.0, *text, *[1.0] * (WINDOW + 1 - len(text))]


def token_count(windows: list[list[WindowToken]]) -> int:
    """A text's length as A1111 counts it: every window but the last is 75."""
    return WINDOW * (len(windows) - 1) + len(windows[-1])


def check_length(windows: list[list[WindowToken]], max_tokens: int) -> None:
    """Check that a text has at most so many tokens, in A1111's count.

    Raises:
        PromptTooLong: it has more.
    """
    if token_count(windows) > max_tokens:
        raise PromptTooLong(token_count(windows), max_tokens)


def inversions_in(windows: Sequence[list[WindowToken]]) -> tuple[PromptEmbedding, ...]:
    """The inversions that stand in a text, in order of first appearance."""
    places = (place for window in windows for place in window)
    return tuple(dict.fromkeys(place.inversion for place in places if place.inversion))
