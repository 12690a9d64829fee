"""Textual inversions in a prompt: their vectors are used, and the encoders stay unchanged."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from imagefleet_shared.errors import IncompatibleAdapter
from imagefleet_worker.adapters.textual_inversion import Embedding, TextEncoder
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.inject_embeddings import inject_embeddings
from imagefleet_worker.prompts.triggers import PromptEmbedding
from tests.conditioning import Conditioning, encode
from tests.unit.worker.prompts import reference

LIMIT = 1000


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def encode_one(warm: WarmPipeline, text: str, *inversions: PromptEmbedding) -> Conditioning:
    return encode(warm, [text], None, LIMIT, [inversions])


def text_encoders(warm: WarmPipeline) -> dict[TextEncoder, Any]:
    names: tuple[TextEncoder, ...] = ("text_encoder", "text_encoder_2")
    return {
        name: getattr(warm.pipeline, name) for name in names[: 2 if warm.family == "sdxl" else 1]
    }


def inversion(
    warm: WarmPipeline, token: str, length: int = 2, scale: float = 1.0, seed: int = 0
) -> PromptEmbedding:
    generator = torch.Generator().manual_seed(seed)
    vectors: dict[TextEncoder, Tensor] = {
        name: torch.randn(length, encoder.config.hidden_size, generator=generator)
        for name, encoder in text_encoders(warm).items()
    }
    return PromptEmbedding(Embedding(token, f"{seed:064x}", vectors), token, scale)


def state(warm: WarmPipeline) -> list[tuple[str, Tensor]]:
    return [item for module in text_encoders(warm).values() for item in module.state_dict().items()]


def hooks(warm: WarmPipeline) -> int:
    """Number of hooks on the embedding tables; transformers has its own on the layers."""
    return sum(
        len(module.get_input_embeddings()._forward_hooks)  # pyright: ignore[reportPrivateUsage]
        for module in text_encoders(warm).values()
    )


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_inversions_equal_vectors_written_into_the_embedding_table(
    warm: WarmPipeline, scale: float
) -> None:
    one = inversion(warm, "bad-hands-5", length=3, scale=scale, seed=1)
    two = inversion(warm, "mystyle", length=1, scale=scale, seed=2)
    text = "(mystyle:1.2), a cat BREAK " + "very " * 73 + "bad-hands-5, by Mystyle"
    vectors = {
        each.token: {key: scale * value for key, value in each.embedding.vectors.items()}
        for each in (one, two)
    }

    encoded = encode_one(warm, text, one, two)
    hidden, pooled = reference.conditioning(warm, text, inversions=vectors)

    torch.testing.assert_close(encoded.hidden[0], hidden, rtol=0, atol=1e-5)
    if pooled is not None:
        assert encoded.pooled is not None
        torch.testing.assert_close(encoded.pooled[0], pooled, rtol=0, atol=1e-5)
    assert encoded.inversions == (two, one)


def test_texts_of_one_batch_have_their_own_inversions(warm: WarmPipeline) -> None:
    first, second = inversion(warm, "style", seed=1), inversion(warm, "style", seed=2)

    encoded = encode(warm, ["a style"] * 3, None, LIMIT, [[first], [], [second]])

    alone = [encode_one(warm, "a style", *each).hidden[0] for each in ([first], [], [second])]
    torch.testing.assert_close(encoded.hidden, torch.stack(alone), rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], alone[2])
    assert encoded.inversions == (first, second)


def test_an_inversion_with_the_vectors_of_words_equals_the_words(warm: WarmPipeline) -> None:
    """The encodings are the same bit for bit."""
    words = reference.ids(warm.pipeline.tokenizer, "red hat")
    vectors: dict[TextEncoder, Tensor] = {
        name: encoder.get_input_embeddings().weight[words]
        for name, encoder in text_encoders(warm).items()
    }
    zebra = PromptEmbedding(Embedding("zebra", "0", vectors), "zebra")

    encoded = encode_one(warm, "a zebra on a dog", zebra)
    assert torch.equal(encoded.hidden, encode_one(warm, "a red hat on a dog").hidden)


def test_the_text_encoders_are_not_changed(warm: WarmPipeline) -> None:
    before = copy.deepcopy(state(warm))
    plain = encode_one(warm, "a style").hidden
    vocabulary = len(warm.pipeline.tokenizer)

    encode_one(warm, "a style", inversion(warm, "style"))

    assert hooks(warm) == 0
    assert len(warm.pipeline.tokenizer) == vocabulary
    assert torch.equal(encode_one(warm, "a style").hidden, plain)
    for (name, old), (_, new) in zip(before, state(warm), strict=True):
        assert torch.equal(old, new), name


def test_no_hook_is_left_when_the_encoder_raises(sd1: WarmPipeline) -> None:
    positions = torch.tensor([0]), torch.tensor([100])
    with (
        pytest.raises(IndexError),
        inject_embeddings(sd1.pipeline.text_encoder, *positions, torch.zeros(1, 96)),
    ):
        sd1.pipeline.text_encoder(torch.tensor([[49406, 49407]]))
    assert hooks(sd1) == 0


def test_a_vector_that_is_never_used_is_an_error(sd1: WarmPipeline) -> None:
    index = torch.tensor([0])
    with (
        pytest.raises(AssertionError, match="never looked its tokens up"),
        inject_embeddings(sd1.pipeline.text_encoder, index, index, torch.zeros(1, 96)),
    ):
        pass
    assert hooks(sd1) == 0


def test_vectors_are_cast_to_the_encoders_dtype(sd1: WarmPipeline) -> None:
    encoder = copy.deepcopy(sd1.pipeline.text_encoder).to(torch.bfloat16)
    vectors = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[49406, 5, 6, 49407], [49406, 6, 5, 49407]])
    with inject_embeddings(encoder, torch.tensor([0, 1]), torch.tensor([1, 2]), vectors):
        hidden = encoder(tokens).last_hidden_state

    encoder.get_input_embeddings().weight.data[[7, 8]] = vectors.to(torch.bfloat16)
    expected = encoder(torch.tensor([[49406, 7, 6, 49407], [49406, 6, 8, 49407]]))
    assert torch.equal(hidden, expected.last_hidden_state)


def test_an_inversion_for_other_text_encoders_is_refused_once_triggered(
    sd1: WarmPipeline, sdxl: WarmPipeline
) -> None:
    for_sd1, for_sdxl = inversion(sd1, "style"), inversion(sdxl, "style")
    for warm, incompatible in ((sd1, for_sdxl), (sdxl, for_sd1)):
        assert encode_one(warm, "a cat", incompatible).inversions == ()
        with pytest.raises(IncompatibleAdapter, match="the checkpoint has text_encoder of width"):
            encode_one(warm, "a style", incompatible)
        assert hooks(warm) == 0
