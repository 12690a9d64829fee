"""Counting tokens and triggered embeddings without a text encoder."""

import pytest
import torch

from imagefleet_shared.errors import PromptTooLong
from imagefleet_worker.adapters.textual_inversion import Embedding
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.count_tokens import count_tokens
from imagefleet_worker.prompts.plan import plan_negative, plan_prompt, texts_of
from imagefleet_worker.prompts.triggers import PromptEmbedding


def inversion(token: str) -> PromptEmbedding:
    return PromptEmbedding(Embedding(token, token, {"text_encoder": torch.zeros(1, 32)}), token)


def test_the_longest_text_of_any_schedule_decides_the_window_count(sd1: WarmPipeline) -> None:
    tokenizer = sd1.pipeline.tokenizer
    prompt = "a cat [:" + "very " * 80 + "small:0.5] AND a dog"
    texts = texts_of((*plan_prompt(prompt, 10), plan_negative("", 10)))

    assert count_tokens(tokenizer, texts, (), 1000).windows == 2
    assert count_tokens(tokenizer, texts[:1], (), 1000).windows == 1
    with pytest.raises(PromptTooLong):
        count_tokens(tokenizer, texts, (), 75)


def test_inversions_are_found_in_all_texts_also_if_a_schedule_forms_the_word(
    sd1: WarmPipeline,
) -> None:
    one, two, three = inversion("female"), inversion("style"), inversion("other")
    texts = texts_of(plan_prompt("[fe|]male AND a style", 10))

    assert count_tokens(sd1.pipeline.tokenizer, texts, (one, two, three), 75).inversions == (
        one,
        two,
    )
