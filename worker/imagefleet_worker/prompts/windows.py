"""Laying out any number of tokens and vectors in CLIP's fixed windows.

CLIP reads 77 tokens: a start token, 75 of text, an end token. As in A1111 v1.10, a longer text is
split into several windows of 75, each with its own start and end token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imagefleet_shared.errors import PromptTooLong
from imagefleet_worker.prompts.triggers import PromptEmbedding

START, END = 49406, 49407
"""CLIP's tokens for the start and the end of a text."""
WINDOW = 75
"""Tokens of text in a window."""
COMMA_BACKTRACK = 20
"""At a window's end, text after a comma at most this many tokens back moves to the next window."""

# The token at a vector's position: any but the end token, for which CLIP searches.
_PLACEHOLDER = 0


@dataclass(frozen=True, slots=True)
class WindowToken:
    """One position of a window: a token, or a vector of a textual inversion."""

    token: int
    """Id in CLIP's vocabulary; ignored if there is an inversion."""
    weight: float
    """Emphasis; 1 for none."""
    inversion: PromptEmbedding | None = None
    """The textual inversion whose vector replaces the token."""
    row: int = 0
    """Index of the vector within the inversion."""


class WindowBuilder:
    """Fills windows of at most 75 tokens from left to right.

    Args:
        comma: the token of a comma.
    """

    def __init__(self, comma: int) -> None:
        self._comma = comma
        self._full: list[list[WindowToken]] = []
        self._open: list[WindowToken] = []

    def add_token(self, token: int, weight: float) -> None:
        """Append a token."""
        self._start_window_if_full(token)
        self._open.append(WindowToken(token, weight))

    def add_inversion(self, inversion: PromptEmbedding, token: int, weight: float) -> None:
        """Append all vectors of an inversion, without splitting them over two windows.

        Args:
            inversion: has at most 75 vectors.
            token: the first token of its trigger.
            weight: emphasis of the vectors.
        """
        self._start_window_if_full(token)
        length = inversion.embedding.num_tokens
        if len(self._open) + length > WINDOW:
            self.next_window()
        self._open += [WindowToken(_PLACEHOLDER, weight, inversion, row) for row in range(length)]

    def next_window(self) -> None:
        """End the current window, however full."""
        self._full.append(self._open)
        self._open = []

    def windows(self) -> list[list[WindowToken]]:
        """The windows so far; an empty text has one, and a break at the end adds none."""
        return [*self._full, self._open] if self._open or not self._full else self._full

    def _start_window_if_full(self, token: int) -> None:
        if len(self._open) < WINDOW:
            return
        # Text since the last comma moves to the next window, except before another comma.
        moved = [] if token == self._comma else self._after_last_comma()
        del self._open[WINDOW - len(moved) :]
        self.next_window()
        self._open = moved

    def _after_last_comma(self) -> list[WindowToken]:
        for back in range(COMMA_BACKTRACK):
            if self._open[WINDOW - 1 - back].token == self._comma:
                return self._open[WINDOW - back :]
        return []


def token_ids(window: list[WindowToken], padding: int) -> list[int]:
    """The 77 token ids of a window.

    Args:
        window: at most 75 tokens.
        padding: token that follows the end token of a shorter window.
    """
    text = [token.token for token in window]
    return [START, *text, END, *[padding] * (WINDOW - len(text))]


def weights(window: list[WindowToken]) -> list[float]:
    """The 77 weights of a window; start, end and padding have 1."""
    text = [token.weight for token in window]
    return [1.0, *text, *[1.0] * (WINDOW + 1 - len(text))]


def token_count(windows: list[list[WindowToken]]) -> int:
    """A text's length as A1111 counts it: every window but the last counts 75."""
    return WINDOW * (len(windows) - 1) + len(windows[-1])


def check_length(windows: list[list[WindowToken]], max_tokens: int) -> None:
    """Check a text's length, as A1111 counts it.

    Raises:
        PromptTooLong: the text has more than `max_tokens`.
    """
    if token_count(windows) > max_tokens:
        raise PromptTooLong(token_count(windows), max_tokens)


def inversions_in(windows: Sequence[list[WindowToken]]) -> tuple[PromptEmbedding, ...]:
    """The inversions that a text triggers, in order of first appearance."""
    tokens = (token for window in windows for token in window)
    return tuple(dict.fromkeys(token.inversion for token in tokens if token.inversion))
