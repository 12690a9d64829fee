"""Encoding: plain prompts equal the text encoder's output, others A1111's algorithm."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from imagefleet_shared.errors import InvalidRequest, PromptTooLong
from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.apply_weights import apply_weights
from tests.conditioning import Conditioning, encode
from tests.unit.worker.prompts import reference

LIMIT = 1000
WEIGHTED = [
    "a (cat:1.3)",
    "((masterpiece)), [blurry], a (red:1.4) hat on a (((dog))) \\(1990\\)",
    "a (cat:0) and (a dog:-0.5)",
    ", ".join(
        f"(word{number}:1.{number % 7}) and some (more [words]) here" for number in range(40)
    ),
    "a cat BREAK (a dog:1.2) BREAK " + "very " * 90 + "long",
]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def encode_one(warm: WarmPipeline, text: str) -> Conditioning:
    return encode(warm, [text], None, LIMIT)


@pytest.mark.parametrize("clip_skip", [None, 1])
@pytest.mark.parametrize("text", ["", "a cat", "A photo of a red hat, on a dog; 4k"])
def test_plain_prompts_equal_the_text_encoders_output_bit_for_bit(
    warm: WarmPipeline, text: str, clip_skip: int | None
) -> None:
    parts: list[Tensor] = []
    pooled = None
    for suffix in ("", "_2") if warm.family == "sdxl" else ("",):
        tokenizer: Any = getattr(warm.pipeline, f"tokenizer{suffix}")
        encoder: Any = getattr(warm.pipeline, f"text_encoder{suffix}")
        tokens = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
        output = encoder(tokens.input_ids, output_hidden_states=True)
        parts.append(reference.layer(warm, encoder, output, clip_skip))
        pooled = output.text_embeds if suffix else None

    encoded = encode(warm, [text], clip_skip, LIMIT)

    assert torch.equal(encoded.hidden, torch.cat(parts, dim=-1))
    assert encoded.inversions == ()
    if pooled is None:
        assert encoded.pooled is None
    else:
        assert encoded.pooled is not None
        assert torch.equal(encoded.pooled, pooled)


def test_clip_skip_is_for_sd1(warm: WarmPipeline) -> None:
    """A1111 writes "Clip skip: 2" into SDXL's infotexts too, but by default skips nothing."""
    plain, skipped = (encode(warm, ["a cat"], skip, LIMIT).hidden for skip in (None, 1))
    assert torch.equal(plain, skipped) == (warm.family == "sdxl")


@pytest.mark.parametrize("text", WEIGHTED)
def test_weighted_prompts_agree_with_a1111s_algorithm(warm: WarmPipeline, text: str) -> None:
    encoded = encode_one(warm, text)
    hidden, pooled = reference.conditioning(warm, text)

    torch.testing.assert_close(encoded.hidden[0], hidden, rtol=0, atol=1e-5)
    if pooled is not None:
        assert encoded.pooled is not None
        torch.testing.assert_close(encoded.pooled[0], pooled, rtol=0, atol=1e-5)


def test_a_weight_changes_the_encoding_but_roughly_preserves_its_mean(warm: WarmPipeline) -> None:
    plain, weighted, literal = (
        encode_one(warm, text).hidden for text in ("a cat", "a (cat:1.3)", r"a \(cat:1.3\)")
    )
    assert not torch.allclose(plain, weighted, atol=1e-3)
    assert not torch.allclose(literal, weighted, atol=1e-3)
    torch.testing.assert_close(weighted.mean(), plain.mean(), rtol=0.1, atol=1e-3)


def test_the_emphasis_modes(warm: WarmPipeline) -> None:
    text = "a (cat:1.3)"
    modes: tuple[Emphasis, ...] = ("original", "no_norm", "ignore", "none")
    original, no_norm, ignore, none = (
        encode(warm, [text], None, LIMIT, emphasis=mode).hidden for mode in modes
    )
    torch.testing.assert_close(
        no_norm[0], reference.conditioning(warm, text, restore_mean=False)[0], rtol=0, atol=1e-5
    )
    assert not torch.equal(original, no_norm)
    assert torch.equal(ignore, encode_one(warm, "a cat").hidden)
    assert torch.equal(none, encode_one(warm, r"a \(cat:1.3\)").hidden)


def test_texts_of_different_length_in_a_batch_do_not_affect_each_other(
    warm: WarmPipeline,
) -> None:
    texts = ["", "a (cat:1.4)", WEIGHTED[3], "a cat BREAK dog"]

    encoded = encode(warm, texts, None, LIMIT)

    empty = encode_one(warm, "").hidden[0]
    for row, text in zip(encoded.hidden, texts, strict=True):
        alone = encode_one(warm, text).hidden[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=1e-5)
        padding = row[len(alone) :].unflatten(0, (-1, 77))
        torch.testing.assert_close(padding, empty.expand_as(padding), rtol=0, atol=1e-5)


def test_a_word_late_in_a_long_text_changes_its_window_only(warm: WarmPipeline) -> None:
    words = ["a"] * 300
    before = encode_one(warm, " ".join(words)).hidden
    words[200] = "cat"
    after = encode_one(warm, " ".join(words)).hidden

    changed = (before != after).any(dim=-1)[0].unflatten(0, (-1, 77)).any(dim=1)
    assert changed.tolist() == [False, False, True, False]


def test_a_texts_length_counts_full_windows(sd1: WarmPipeline) -> None:
    with pytest.raises(PromptTooLong) as caught:
        encode(sd1, ["a", "a " * 76], None, 75)
    assert caught.value.args == (76, 75)
    with pytest.raises(PromptTooLong):
        encode(sd1, ["a BREAK " * 20 + "b"], None, LIMIT)
    encode(sd1, ["a " * 75], None, 75)


def test_weights_that_overflow_a_float_are_refused(sd1: WarmPipeline) -> None:
    with pytest.raises(InvalidRequest, match="not finite"):
        encode_one(sd1, f"(a:{'9' * 400})")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_emphasis_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    factors = torch.ones(2, 77)
    factors[1, 3:6] = 1.3

    emphasised = apply_weights(hidden, factors, "original")

    exact = apply_weights(hidden.double().float(), factors, "original")
    assert torch.equal(emphasised, exact.to(dtype))
    assert torch.equal(emphasised[0], hidden[0])
    torch.testing.assert_close(exact[1].mean(), hidden[1].float().mean())
