"""Windows of 75 tokens: breaks, commas near the end, and inversions that are never split."""

import random

import pytest
import torch
from transformers import CLIPTokenizer

from imagefleet_shared.errors import InvalidRequest, WorkerFailure
from imagefleet_worker.adapters.textual_inversion import Embedding
from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer
from imagefleet_worker.prompts.lay_out import lay_out, text_match_key
from imagefleet_worker.prompts.tokens import match_key
from imagefleet_worker.prompts.triggers import PromptEmbedding, UnusableEmbedding
from imagefleet_worker.prompts.windows import WindowToken, token_count, token_ids, weights
from tests.unit.worker.prompts import reference

COMMA = reference.COMMA
WORDS = "a cat, , ( :1.3) ) [ ] BREAK blue style stork red dog \\( hat of a very small"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer("!")


def inversion(token: str, length: int, scale: float = 1.0) -> PromptEmbedding:
    embedding = Embedding(token, "00", {"text_encoder": torch.zeros(length, 4)})
    return PromptEmbedding(embedding, token, scale)


def lengths(windows: list[list[WindowToken]]) -> list[int]:
    return [len(window) for window in windows]


def tokens_of(windows: list[list[WindowToken]]) -> list[list[int]]:
    return [[token.token for token in window] for window in windows]


def test_an_empty_text_is_one_empty_window(tokenizer: CLIPTokenizer) -> None:
    assert lay_out(tokenizer, "", [], "original") == [[]]
    assert lay_out(tokenizer, "([])", [], "original") == [[]]


def test_a_window_has_start_end_and_padding() -> None:
    tokens = [WindowToken(5, 1.0), WindowToken(6, 1.3)]

    assert token_ids(tokens, padding=7) == [49406, 5, 6, 49407, *[7] * 73]
    assert weights(tokens) == [1.0, 1.0, 1.3, *[1.0] * 74]
    assert len(token_ids([WindowToken(5, 1.0)] * 75, padding=7)) == len(weights(tokens)) == 77


def test_a_break_ends_the_window_and_one_at_the_end_adds_none(tokenizer: CLIPTokenizer) -> None:
    assert lengths(lay_out(tokenizer, "a cat BREAK dog", [], "original")) == [2, 1]
    assert lengths(lay_out(tokenizer, "a cat BREAK", [], "original")) == [2]
    assert lengths(lay_out(tokenizer, "BREAK a cat", [], "original")) == [0, 2]
    assert lengths(lay_out(tokenizer, "a BREAK BREAK b", [], "original")) == [1, 0, 1]


def test_a_break_counts_as_a_full_window(tokenizer: CLIPTokenizer) -> None:
    assert token_count(lay_out(tokenizer, "a cat BREAK dog", [], "original")) == 76
    assert token_count(lay_out(tokenizer, "a cat", [], "original")) == 2


@pytest.mark.parametrize(
    ("comma_at", "first_window"), [(74, 75), (73, 74), (60, 61), (55, 56), (54, 75), (10, 75)]
)
def test_text_after_a_comma_near_the_end_moves_to_the_next_window(
    tokenizer: CLIPTokenizer, comma_at: int, first_window: int
) -> None:
    words = ["a"] * 80
    words[comma_at] = ","

    windows = lay_out(tokenizer, " ".join(words), [], "original")

    assert lengths(windows) == [first_window, 80 - first_window]


def test_a_comma_that_does_not_fit_moves_nothing(tokenizer: CLIPTokenizer) -> None:
    words = ["a"] * 80
    words[60] = words[75] = ","
    windows = lay_out(tokenizer, " ".join(words), [], "original")
    assert lengths(windows) == [75, 5]
    assert windows[1][0].token == COMMA


def test_with_emphasis_none_brackets_are_text(tokenizer: CLIPTokenizer) -> None:
    (window,) = lay_out(tokenizer, "(cat:1.3) BREAK", [], "none")

    assert [token.token for token in window] == reference.ids(tokenizer, "(cat:1.3) BREAK")
    assert {token.weight for token in window} == {1.0}


def test_a_weight_that_is_not_finite_is_refused(tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="not finite"):
        lay_out(tokenizer, "(" * 8000 + "a", [], "original")


def test_an_inversion_takes_the_place_of_its_trigger(tokenizer: CLIPTokenizer) -> None:
    style = inversion("bad-hands-5", 3)

    (window,) = lay_out(tokenizer, "a (BAD-Hands-5:1.2), cat", [style], "original")

    assert [token.inversion for token in window] == [None, style, style, style, None, None]
    assert [token.row for token in window if token.inversion] == [0, 1, 2]
    assert [token.weight for token in window] == [1.0, 1.2, 1.2, 1.2, 1.0, 1.0]


def test_the_longest_trigger_wins(tokenizer: CLIPTokenizer) -> None:
    short, long = inversion("easy", 1), inversion("easy negative", 2)

    for known in ([short, long], [long, short]):
        (window,) = lay_out(tokenizer, "easy negative, easy cat", known, "original")
        assert [token.inversion for token in window] == [long, long, None, short, None]


def test_a_trigger_is_whole_tokens_of_one_piece(tokenizer: CLIPTokenizer) -> None:
    style = inversion("easy negative", 2)

    for text in ("easynegative", "easy (negative)", "easy BREAK negative", "easy, negative"):
        windows = lay_out(tokenizer, text, [style], "original")
        assert not any(token.inversion for window in windows for token in window)


@pytest.mark.parametrize(("before", "expected"), [(72, [75]), (73, [73, 3]), (75, [75, 3])])
def test_an_inversion_is_never_split(
    tokenizer: CLIPTokenizer, before: int, expected: list[int]
) -> None:
    windows = lay_out(tokenizer, "a " * before + "style", [inversion("style", 3)], "original")
    assert lengths(windows) == expected


def test_an_inversion_after_a_comma_moves_to_the_next_window_with_the_text(
    tokenizer: CLIPTokenizer,
) -> None:
    """A1111 leaves its vectors behind in the old window and puts "!" into the new one."""
    style = inversion("style", 4)

    windows = lay_out(tokenizer, "a " * 65 + ", style cat dog dog dog dog dog", [style], "original")

    assert lengths(windows) == [66, 10]
    assert [token.inversion for token in windows[1]] == [*[style] * 4, *[None] * 6]


def test_different_inversions_with_the_same_tokens_fail_only_texts_that_trigger_them(
    tokenizer: CLIPTokenizer,
) -> None:
    """They were once refused for every text, so two such files could fail unrelated jobs."""
    cased = [inversion("Style", 1), inversion("style", 1)]
    with pytest.raises(InvalidRequest, match="'Style' and 'style' read the same"):
        lay_out(tokenizer, "a style", cased, "original")
    assert lengths(lay_out(tokenizer, "stylish", cased, "original")) == [1]
    with pytest.raises(InvalidRequest, match="read the same"):
        lay_out(tokenizer, "x", [inversion("x", 1), inversion("x", 1, scale=2)], "original")
    same = [inversion("x", 1), inversion("x", 1)]
    assert lengths(lay_out(tokenizer, "x", same, "original")) == [1]


def test_an_unusable_embedding_fails_only_texts_that_trigger_it(tokenizer: CLIPTokenizer) -> None:
    known = [UnusableEmbedding("art", WorkerFailure("gone")), inversion("pixel art", 1)]
    for text in ("a party", "pixel art", "a cat"):
        lay_out(tokenizer, text, known, "original")
    for text in ("an art", "pixel (art)"):
        with pytest.raises(WorkerFailure, match="gone"):
            lay_out(tokenizer, text, known, "original")
    with pytest.raises(WorkerFailure, match="gone"):
        lay_out(tokenizer, "art", [inversion("Art", 1), known[0]], "original")


def test_triggers_are_normalized_like_texts(tokenizer: CLIPTokenizer) -> None:
    style = inversion("it’s", 2)  # noqa: RUF001
    for text in ("it's", "It’s"):  # noqa: RUF001
        (window,) = lay_out(tokenizer, text, [style], "original")
        assert [token.inversion for token in window] == [style, style]


@pytest.mark.parametrize("text", [r"neg \(1\)", r"(ne\g (:1.1)[\(]1\)", "NEG  \\(1\n\\)"])
def test_a_texts_match_key_ignores_brackets(text: str) -> None:
    assert match_key("neg (1)") in text_match_key(text, "original")


@pytest.mark.parametrize("token", ["", " "])
def test_an_empty_trigger_is_refused(tokenizer: CLIPTokenizer, token: str) -> None:
    with pytest.raises(InvalidRequest, match="no characters"):
        lay_out(tokenizer, "a", [inversion(token, 1)], "original")


@pytest.mark.parametrize("seed", range(40))
def test_random_texts_are_laid_out_as_by_the_reference(tokenizer: CLIPTokenizer, seed: int) -> None:
    random_ = random.Random(seed)
    known = [inversion("blue style", 5), inversion("blue", 2), inversion("stork", 40)]
    text = " ".join(random_.choices(WORDS.split(), k=random_.randint(1, 400)))
    numbers = {"blue style": range(-50, -45), "blue": range(-60, -58), "stork": range(-140, -100)}

    windows = lay_out(tokenizer, text, known, "original")

    expected = reference.chunks(tokenizer, text, numbers)
    plain = [[max(token, 0) for token in chunk.tokens] for chunk in expected]
    assert tokens_of(windows) == plain
    assert [[token.weight for token in w] for w in windows] == [c.weights for c in expected]
