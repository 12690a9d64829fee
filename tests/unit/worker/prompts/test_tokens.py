"""Texts are cleaned with ftfy before they are tokenized, as in A1111."""

import pytest
from transformers import CLIPTokenizer

from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer
from imagefleet_worker.prompts.tokens import match_key, tokenize


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer("<|endoftext|>")


@pytest.mark.parametrize(
    ("text", "cleaned"),
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
def test_typographic_and_garbled_characters_are_tokenized_as_plain_ones(
    tokenizer: CLIPTokenizer, text: str, cleaned: str
) -> None:
    """They had other tokens than in A1111."""
    expected = tokenizer([cleaned], add_special_tokens=False).input_ids
    assert tokenize(tokenizer, [text]) == tokenize(tokenizer, [cleaned]) == expected


def test_no_texts_have_no_tokens(tokenizer: CLIPTokenizer) -> None:
    assert tokenize(tokenizer, []) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("by bad artist", "a cat, By  BAD\nartist"),
        ("don’t", "please don't"),  # noqa: RUF001
        ("ÉTÉ", "un e\u0301te\u0301"),
    ],
)
def test_a_text_that_contains_the_tokens_of_a_name_contains_its_match_key(
    tokenizer: CLIPTokenizer, name: str, text: str
) -> None:
    of_name, tokens = tokenize(tokenizer, [name, text])
    length = len(of_name)
    assert any(tokens[start : start + length] == of_name for start in range(len(tokens)))
    assert match_key(name) in match_key(text)
