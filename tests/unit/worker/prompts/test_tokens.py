"""Texts are mended before they are tokens, as by A1111's own tokenizer."""

import pytest
from transformers import CLIPTokenizer

from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer
from imagefleet_worker.prompts.tokens import letters_of, tokenized


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer("<|endoftext|>")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a woman’s hat, she doesn’t smile", "a woman's hat, she doesn't smile"),  # noqa: RUF001
        ("a sign that says “hello”", 'a sign that says "hello"'),
        ("1girl，solo，long hair", "1girl,solo,long hair"),  # noqa: RUF001
        ("ｆｕｌｌ width", "full width"),  # noqa: RUF001
        ("ﬁne art", "fine art"),
        ("schÃ¶n", "schön"),
        ("black &amp; white", "black & white"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_typographers_and_damaged_characters_are_read_as_plain_ones(
    tokenizer: CLIPTokenizer, typed: str, read: str
) -> None:
    """They had other tokens than in A1111."""
    own = tokenizer([read], add_special_tokens=False).input_ids
    assert tokenized(tokenizer, [typed]) == tokenized(tokenizer, [read]) == own


def test_no_texts_have_no_tokens(tokenizer: CLIPTokenizer) -> None:
    assert tokenized(tokenizer, []) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("by bad artist", "a cat, By  BAD\nartist"),
        ("don’t", "please don't"),  # noqa: RUF001
        ("ÉTÉ", "un e\u0301te\u0301"),
    ],
)
def test_the_letters_of_tokens_are_among_those_of_a_text_that_has_them(
    tokenizer: CLIPTokenizer, name: str, text: str
) -> None:
    wanted, tokens = tokenized(tokenizer, [name, text])
    assert any(tokens[at : at + len(wanted)] == wanted for at in range(len(tokens)))
    assert letters_of(name) in letters_of(text)
