"""Cached encodings equal fresh ones bit for bit, and are reused only for equal inputs."""

import dataclasses
from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from torch import Tensor

from imagefleet_shared.errors import PromptTooLong
from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.adapters.merge import applied
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.prompts.encoded import EncodedText
from tests.random_adapters import adapter_of
from tests.unit.worker.prompts.test_inject_embeddings import hooks, inversion

SETTINGS = TextSettings(clip_skip=None, max_tokens=1000)
TEXTS = ["", "a cat", "a (dog:1.3) by the sea", "a cat BREAK " + "very " * 90 + "long"]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def same(one: EncodedText, two: EncodedText) -> bool:
    if (one.pooled is None) != (two.pooled is None):
        return False
    pooled = one.pooled is None or two.pooled is None or torch.equal(one.pooled, two.pooled)
    return pooled and torch.equal(one.hidden, two.hidden)


def fresh(warm: WarmPipeline, text: str, settings: TextSettings = SETTINGS) -> EncodedText:
    return PromptEncoder(0).encode(warm, text, (), settings)


def lora(warm: WarmPipeline, component: Component, seed: int, **scales: float) -> ScaledAdapter:
    """An adapter that changes one parameter of a component."""
    module = getattr(warm.pipeline, component)
    name, parameter = next(item for item in module.named_parameters() if item[1].ndim == 2)
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(parameter.shape, generator=generator)
    all_scales = {"unet_scale": 1.0, "text_encoder_scale": 1.0} | scales
    adapter = adapter_of(f"{component} {seed}", {Target(component, name): _Whole(change)})
    return ScaledAdapter(adapter=adapter, **all_scales)


@dataclasses.dataclass
class _Whole:
    change: Tensor
    size_bytes: int = 0

    def of(self, original: Tensor) -> Tensor:
        return self.change.to(original.device)


def test_cached_encodings_equal_fresh_ones_bit_for_bit(warm: WarmPipeline) -> None:
    encoder = PromptEncoder(2**30)
    first = [encoder.encode(warm, text, (), SETTINGS) for text in TEXTS]
    again = [encoder.encode(warm, text, (), SETTINGS) for text in reversed(TEXTS)]

    assert (encoder.stats.hits, encoder.stats.misses, encoder.stats.entries) == (4, 4, 4)
    assert encoder.stats.size_bytes == sum(text.size_bytes for text in first)
    for text, one, two in zip(TEXTS, first, reversed(again), strict=True):
        assert two is one
        assert same(one, fresh(warm, text))


def test_an_encoding_is_reused_only_for_the_same_text_inversions_and_settings(
    warm: WarmPipeline,
) -> None:
    encoder = PromptEncoder(2**30)
    text = "a (cat:1.2) in a style"
    style, other = inversion(warm, "style"), inversion(warm, "other")
    settings = [
        SETTINGS,
        TextSettings(clip_skip=None, max_tokens=1000, emphasis="none"),
    ]
    if warm.family == "sd1":
        settings.append(TextSettings(clip_skip=1, max_tokens=1000))
    encoded = [encoder.encode(warm, text, (), each) for each in settings]
    encoded.append(encoder.encode(warm, text, (style,), SETTINGS))
    encoded.append(encoder.encode(warm, text, (dataclasses.replace(style, scale=0.5),), SETTINGS))

    assert encoder.stats.hits == 0
    pairs = combinations(encoded, 2)
    assert not any(torch.equal(one.hidden[:77], two.hidden[:77]) for one, two in pairs)
    assert encoder.encode(warm, text, (other, style), SETTINGS) is encoded[-2]
    assert encoder.encode(warm, text, (other,), SETTINGS) is encoded[0]
    assert hooks(warm) == 0


def test_encodings_depend_on_adapters_of_the_text_encoders_but_not_of_the_unet(
    warm: WarmPipeline,
) -> None:
    encoder = PromptEncoder(2**30)
    plain = encoder.encode(warm, "a cat", (), SETTINGS)
    text_lora = lora(warm, "text_encoder", 1)

    with applied(warm.merged, [text_lora]):
        changed = encoder.encode(warm, "a cat", (), SETTINGS)
        assert same(changed, fresh(warm, "a cat"))
    with applied(warm.merged, [lora(warm, "unet", 2)]):
        assert encoder.encode(warm, "a cat", (), SETTINGS) is plain
    with applied(warm.merged, [lora(warm, "text_encoder", 1, text_encoder_scale=0.0)]):
        assert encoder.encode(warm, "a cat", (), SETTINGS) is plain
    with applied(warm.merged, [lora(warm, "text_encoder", 1, text_encoder_scale=0.5)]):
        halved = encoder.encode(warm, "a cat", (), SETTINGS)
    with applied(warm.merged, [text_lora, lora(warm, "unet", 2)]):
        assert encoder.encode(warm, "a cat", (), SETTINGS) is changed

    assert not torch.equal(plain.hidden, changed.hidden)
    assert not torch.equal(halved.hidden, changed.hidden)
    assert encoder.encode(warm, "a cat", (), SETTINGS) is plain


def test_checkpoints_do_not_share_encodings(sd1: WarmPipeline, sdxl: WarmPipeline) -> None:
    encoder = PromptEncoder(2**30)
    one, two = (encoder.encode(warm, "a cat", (), SETTINGS) for warm in (sd1, sdxl))
    assert one.pooled is None
    assert two.pooled is not None


def test_the_least_recently_used_encoding_is_evicted_first(sd1: WarmPipeline) -> None:
    size_bytes = fresh(sd1, "a").size_bytes
    encoder = PromptEncoder(2 * size_bytes)
    for text in ("a", "b", "a", "c", "a"):
        encoder.encode(sd1, text, (), SETTINGS)

    assert (encoder.stats.hits, encoder.stats.entries) == (2, 2)
    assert encoder.stats.size_bytes == 2 * size_bytes
    encoder.encode(sd1, "b", (), SETTINGS)
    assert encoder.stats.misses == 4


def test_an_encoding_larger_than_the_budget_is_not_cached(sd1: WarmPipeline) -> None:
    encoder = PromptEncoder(fresh(sd1, "a").size_bytes - 1)
    assert same(encoder.encode(sd1, "a", (), SETTINGS), fresh(sd1, "a"))
    assert encoder.stats.entries == 0


def test_the_cache_is_empty_after_clearing(sd1: WarmPipeline) -> None:
    encoder = PromptEncoder(2**30)
    encoder.encode(sd1, "a", (), SETTINGS)
    encoder.clear()
    assert (encoder.stats.entries, encoder.stats.size_bytes) == (0, 0)
    encoder.encode(sd1, "a", (), SETTINGS)
    assert encoder.stats.misses == 2


def test_a_text_too_long_is_refused_and_not_cached(sd1: WarmPipeline) -> None:
    encoder = PromptEncoder(2**30)
    with pytest.raises(PromptTooLong):
        encoder.encode(sd1, "a " * 76, (), TextSettings(clip_skip=None, max_tokens=75))
    assert encoder.stats.entries == 0
