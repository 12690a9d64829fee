"""The UNet's conditioning, evaluation by evaluation."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from imagefleet_shared.errors import PromptTooLong
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.conditioning import CondBatch, Conditioning, PlannedPrompts
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.prompts.encoded import EncodedText, stack_rows, zeros_like
from imagefleet_worker.prompts.plan import plan_negative, plan_prompt
from imagefleet_worker.prompts.triggers import PromptEmbedding
from tests.unit.worker.prompts.test_inject_embeddings import hooks, inversion, state

STEPS = 6
SETTINGS = TextSettings(clip_skip=None, max_tokens=1000)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def picture(prompt: str, negative: str = "", *inversions: PromptEmbedding) -> PlannedPrompts:
    return PlannedPrompts(plan_prompt(prompt, STEPS), plan_negative(negative, STEPS), inversions)


def conditioning(
    warm: WarmPipeline,
    pictures: Sequence[PlannedPrompts],
    scale: float = 7.0,
    windows: int = 1,
    encoder: PromptEncoder | None = None,
) -> Conditioning:
    return Conditioning(encoder or PromptEncoder(2**30), warm, pictures, scale, windows, SETTINGS)


def rows_of(warm: WarmPipeline, *texts: str) -> list[EncodedText]:
    return [PromptEncoder(0).encode(warm, text, (), SETTINGS) for text in texts]


def hidden_of(warm: WarmPipeline, *texts: str) -> Tensor:
    return stack_rows(rows_of(warm, *texts))[0]


def check(cond: CondBatch, warm: WarmPipeline, *texts: str) -> None:
    """Check the rows; an empty text is a negative, which for SDXL is zeros."""
    rows = [
        zeros_like(row) if warm.family == "sdxl" and not text else row
        for row, text in zip(rows_of(warm, *texts), texts, strict=True)
    ]
    hidden, pooled = stack_rows(rows)
    assert torch.equal(cond.hidden, hidden)
    if pooled is None:
        assert cond.pooled is None
    else:
        assert cond.pooled is not None
        assert torch.equal(cond.pooled, pooled)


def test_without_and_or_schedules_all_evaluations_share_one_object(
    warm: WarmPipeline,
) -> None:
    batch = conditioning(warm, [picture("a cat", "bad"), picture("a dog")])

    first = batch.at(0)
    assert all(batch.at(call) is first for call in range(STEPS))
    assert batch.guided
    check(first, warm, "bad", "", "a cat", "a dog")
    assert first.image_indices.tolist() == [0, 1]
    assert first.image_indices.dtype == torch.int64
    assert first.weights.tolist() == [1.0, 1.0]
    assert first.weights.dtype == torch.float32


def test_without_guidance_there_are_no_negatives(warm: WarmPipeline) -> None:
    batch = conditioning(warm, [picture("a cat", "bad"), picture("a dog")], scale=1.0)
    assert not batch.guided
    check(batch.at(0), warm, "a cat", "a dog")
    assert batch.at(0).image_indices.tolist() == [0, 1]


def test_prompts_with_and_need_the_negatives_also_at_scale_1(sd1: WarmPipeline) -> None:
    batch = conditioning(sd1, [picture("a"), picture("b AND c :0.5")], scale=1.0)
    assert batch.guided
    check(batch.at(0), sd1, "", "", "a", "b", " c")


def test_pictures_have_parts_and_schedules_of_their_own(warm: WarmPipeline) -> None:
    pictures = [
        picture("a AND [b:c:2] :0.5 AND d :-1", "[x:y:3]"),
        picture("[e|f]", "z"),
        picture("g"),
    ]
    batch = conditioning(warm, pictures)

    for call in range(STEPS):
        check(
            batch.at(call),
            warm,
            *("x" if call <= 3 else "y", "z", ""),
            *("a", " b" if call <= 2 else " c", " d"),
            *("f" if call in (2, 4) else "e", "g"),
        )
        assert batch.at(call).image_indices.tolist() == [0, 0, 0, 1, 2]
        assert batch.at(call).weights.tolist() == [1.0, 0.5, -1.0, 1.0, 1.0]


def test_only_an_empty_negative_prompt_of_sdxl_is_zeros(sdxl: WarmPipeline) -> None:
    pictures = [picture(""), picture("a", " "), picture("a", "[:b:2]")]
    first = conditioning(sdxl, pictures, windows=2).at(0)

    assert first.pooled is not None
    assert first.hidden.flatten(1).any(dim=1).tolist() == [False, True, True, True, True, True]
    assert first.pooled.any(dim=1).tolist() == [False, True, True, True, True, True]


def test_rows_are_stacked_again_only_when_a_text_changes(sd1: WarmPipeline) -> None:
    batch = conditioning(sd1, [picture("[a:b:2]", "[c:d:4]")])
    objects = [batch.at(call) for call in range(STEPS)]

    assert len({id(cond) for cond in objects}) == 3
    assert objects[0] is objects[2]
    assert objects[3] is objects[4]
    assert batch.at(0).image_indices is objects[0].image_indices


def test_the_shape_is_constant_and_shorter_texts_are_padded_with_empty_windows(
    warm: WarmPipeline,
) -> None:
    long = "very " * 80 + "long"
    pictures = [picture(f"a cat [:{long}:2]", "bad"), picture("b AND c")]
    batch = conditioning(warm, pictures, windows=3)

    assert len({batch.at(call).hidden.shape for call in range(STEPS)}) == 1
    rows = batch.at(STEPS - 1).hidden.unflatten(1, (3, 77))
    empty = hidden_of(warm, "")[0]
    assert torch.equal(rows[0, 0], hidden_of(warm, "bad")[0])
    assert torch.equal(rows[2, :2].flatten(0, 1), hidden_of(warm, f"a cat {long}")[0])
    for padding in (rows[0, 1], rows[0, 2], rows[2, 2], rows[3, 1]):
        assert torch.equal(padding, empty)


def test_a_picture_has_the_same_rows_in_every_batch(warm: WarmPipeline) -> None:
    shared = picture("a (cat:1.3) AND [b:c:2]", "bad")
    alone = conditioning(warm, [shared], windows=2)
    batch = conditioning(warm, [picture("x AND y AND z"), shared, picture("[v|w]")], windows=2)

    for call in range(STEPS):
        one, many = alone.at(call), batch.at(call)
        positives = many.hidden[3:][many.image_indices == 1]
        assert torch.equal(one.hidden, torch.cat([many.hidden[1:2], positives]))


def test_every_text_is_encoded_once(sd1: WarmPipeline) -> None:
    encoder = PromptEncoder(2**30)
    conditioning(sd1, [picture("[a|b] AND b", "a")] * 4, encoder=encoder)
    assert encoder.stats.misses == 4  # "", "a", "b", " b"


def test_pictures_trigger_their_own_inversions_and_no_hook_is_left(warm: WarmPipeline) -> None:
    one, two = inversion(warm, "style", seed=1), inversion(warm, "style", seed=2)
    before = [(name, tensor.clone()) for name, tensor in state(warm)]

    pictures = [picture("a style", "", embedding) for embedding in (one, two, one)]
    rows = conditioning(warm, pictures).at(0).hidden

    assert torch.equal(rows[3], rows[5])
    assert not torch.equal(rows[3], rows[4])
    assert hooks(warm) == 0
    for (name, tensor), (_, saved) in zip(state(warm), before, strict=True):
        assert torch.equal(tensor, saved), name


def test_an_invalid_text_of_a_later_step_fails_before_the_first_step(sd1: WarmPipeline) -> None:
    settings = TextSettings(clip_skip=None, max_tokens=75)
    with pytest.raises(PromptTooLong):
        Conditioning(PromptEncoder(0), sd1, [picture(f"[a:{'b ' * 76}:5]")], 7.0, 1, settings)
