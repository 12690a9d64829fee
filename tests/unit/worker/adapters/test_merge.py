"""Adapters are merged by formula, in place, and unmerged without a trace."""

# A tensor's private `_version` counts the writes to it.
# pyright: reportPrivateUsage=false

import gc
import random
from collections.abc import Iterator

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from imagefleet_shared.errors import IncompatibleAdapter
from imagefleet_worker.adapters.delta import Adapter, Component, Target
from imagefleet_worker.adapters.merge import MergedState, applied
from imagefleet_worker.adapters.merge_kernels import group_targets, write_merged
from imagefleet_worker.adapters.originals import Originals, StateCorrupted
from imagefleet_worker.adapters.scaled import ScaledAdapter, Terms
from tests.random_adapters import (
    FailAfter,
    LowRank,
    Whole,
    adapter_of,
    linear_targets,
    random_lora,
    random_mixture,
    targets_of,
)
from tests.weights import Modules, differing, layout, small_modules, tensors_of, wrongly_merged

_QUERY = Target("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
_KEY = Target("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight")
_CLIP = Target("text_encoder", "encoder.layers.0.self_attn.q_proj.weight")


@pytest.fixture
def modules() -> dict[Component, nn.Module]:
    return small_modules("sd1", torch.float16)


@pytest.fixture
def pristine(modules: Modules) -> dict[Target, Tensor]:
    return _copies(modules)


@pytest.fixture
def state(modules: Modules) -> MergedState:
    return _state(modules)


def _state(modules: Modules, verify_every: int = 1) -> MergedState:
    return MergedState(
        modules, device_budget_bytes=0, merged_cache_bytes=0, verify_every=verify_every
    )


def _copies(modules: Modules) -> dict[Target, Tensor]:
    return {target: tensor.clone() for target, tensor in tensors_of(modules).items()}


def _lora(name: str, modules: Modules, *targets: Target, seed: int = 0) -> Adapter:
    return random_lora(name, modules, targets, rank=4, seed=seed)


def _at(adapter: Adapter, scale: float, text_encoder_scale: float | None = None) -> ScaledAdapter:
    other = scale if text_encoder_scale is None else text_encoder_scale
    return ScaledAdapter(adapter=adapter, unet_scale=scale, text_encoder_scale=other)


def _writes(modules: Modules) -> dict[Target, int]:
    return {target: tensor._version for target, tensor in tensors_of(modules).items()}


def test_merged_weights_are_the_sum_in_float32_rounded_once(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState
) -> None:
    one = random_mixture("one", modules, targets_of(modules), seed=1, fail_after=FailAfter())
    two = random_mixture("two", modules, targets_of(modules)[::2], seed=2, fail_after=FailAfter())
    adapters = [_at(two, -0.3), _at(one, 0.7, 1.2)]

    before = layout(modules)
    state.switch(adapters)

    assert not wrongly_merged(modules, pristine, adapters)
    assert layout(modules) == before
    state.switch(())
    assert not differing(modules, pristine)
    assert state.verify()


def test_a_matrix_merged_rowwise_has_the_same_bits() -> None:
    """Uses integers, so that the order of summation does not matter."""
    modules: dict[Component, nn.Module] = {"unet": nn.Linear(700, 1000).half()}
    pristine = _copies(modules)
    generator = torch.Generator().manual_seed(0)
    up = torch.randint(-9, 9, (1000, 4), generator=generator).float()
    down = torch.randint(-9, 9, (4, 700), generator=generator).float()
    adapters = [
        _at(adapter_of(name, {Target("unet", "weight"): LowRank(up, down, FailAfter())}), scale)
        for name, scale in (("one", 0.5), ("two", -0.125))
    ]

    _state(modules).switch(adapters)

    assert not wrongly_merged(modules, pristine, adapters)


def test_parameters_merged_in_a_group_equal_those_merged_one_by_one(modules: Modules) -> None:
    """They are grouped on a GPU, but not on a CPU."""
    lora = _lora("one", modules, _QUERY, _KEY)
    terms: dict[Target, Terms] = {_QUERY: (("one", 0.5),), _KEY: (("one", 2.0), ("one", 1.0))}
    together, alone = [
        {target: tensors_of(modules)[target].clone() for target in terms} for _ in range(2)
    ]
    assert [len(group) for group in group_targets(together, terms)] == [1, 1]
    terms[_QUERY] = (("one", 0.5), ("one", -1.0))
    originals = [tensor.float() for tensor in together.values()]

    write_merged(together, originals, terms, {"one": lora})
    for (target, parameter), original in zip(alone.items(), originals, strict=True):
        write_merged({target: parameter}, [original], terms, {"one": lora})

    assert all(torch.equal(together[target], alone[target]) for target in terms)


def test_the_same_set_in_any_order_writes_nothing(modules: Modules, state: MergedState) -> None:
    one = _lora("one", modules, _QUERY, _KEY, seed=1)
    two = _lora("two", modules, _QUERY, _CLIP, seed=2)
    state.switch([_at(one, 0.5), _at(two, 0.25)])
    before = _writes(modules)

    report = state.switch([_at(two, 0.25), _at(one, 0.5)])

    assert _writes(modules) == before
    assert (report.rewritten, report.restored, report.unchanged) == (0, 0, 3)


def test_the_order_of_adapters_does_not_change_a_bit(modules: Modules) -> None:
    loras = [_lora(name, modules, _QUERY, _CLIP, seed=len(name)) for name in ("a", "bb", "ccc")]
    forward = [_at(lora, scale) for lora, scale in zip(loras, (0.1, 0.7, 1.3), strict=True)]
    _state(modules).switch(forward)
    other = small_modules("sd1", torch.float16)

    _state(other).switch(forward[::-1])

    assert not differing(modules, tensors_of(other))


def test_only_parameters_whose_terms_change_are_written(
    modules: Modules, state: MergedState
) -> None:
    one = _lora("one", modules, _QUERY, _KEY)
    two = _lora("two", modules, _KEY, _CLIP)
    state.switch([_at(one, 1), _at(two, 1)])
    before = _writes(modules)

    report = state.switch([_at(one, 1)])

    assert (report.rewritten, report.restored, report.unchanged) == (1, 1, 1)
    changed = {target for target, count in _writes(modules).items() if count != before[target]}
    assert changed == {_KEY, _CLIP}


def test_changing_one_components_scale_does_not_write_the_other(
    modules: Modules, state: MergedState
) -> None:
    lora = _lora("one", modules, _QUERY, _CLIP)
    state.switch([_at(lora, 1, 1)])
    before = _writes(modules)

    report = state.switch([_at(lora, 1, 0.5)])

    assert (report.rewritten, report.unchanged) == (1, 1)
    assert _writes(modules)[_QUERY] == before[_QUERY]


def test_scale_zero_equals_no_adapter(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState
) -> None:
    before = _writes(modules)

    report = state.switch([_at(_lora("one", modules, _QUERY, _CLIP), 0.0, -0.0)])

    assert (report.rewritten, report.restored, report.unchanged) == (0, 0, 0)
    assert _writes(modules) == before
    assert not differing(modules, pristine)


def test_an_adapter_is_identified_by_its_hash(modules: Modules, state: MergedState) -> None:
    state.switch([_at(_lora("old", modules, _QUERY, seed=1), 1)])

    assert state.switch([_at(_lora("old", modules, _QUERY, seed=1), 1)]).rewritten == 0
    assert state.switch([_at(_lora("new", modules, _QUERY, seed=2), 1)]).rewritten == 1


def test_an_adapter_given_twice_counts_twice(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState
) -> None:
    lora = _lora("one", modules, _QUERY)

    state.switch([_at(lora, 0.5), _at(lora, 0.5)])

    assert not wrongly_merged(modules, pristine, [_at(lora, 0.5), _at(lora, 0.5)])


def test_an_unknown_target_is_an_error_that_names_it(modules: Modules, state: MergedState) -> None:
    xl = Target("text_encoder_2", "encoder.layers.0.self_attn.q_proj.weight")
    tensor = torch.zeros(1)
    incompatible = adapter_of(
        "x", {xl: Whole(tensor, FailAfter()), _QUERY: Whole(tensor, FailAfter())}
    )
    previous = [_at(_lora("one", modules, _QUERY), 1)]
    state.switch(previous)
    before = _writes(modules)

    with pytest.raises(IncompatibleAdapter, match=r"text_encoder_2\.encoder\.layers\.0"):
        state.switch([_at(incompatible, 0)])

    assert _writes(modules) == before
    assert state.switch(previous).unchanged == 1


def test_a_delta_of_the_wrong_shape_is_an_error_and_leaves_no_adapter_merged(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState
) -> None:
    good = _lora("good", modules, _KEY, _CLIP)
    bad = adapter_of("bad", {_QUERY: Whole(torch.zeros(3, 3), FailAfter())})

    with pytest.raises(IncompatibleAdapter, match=r"attn1\.to_q\.weight is .* adds \[3, 3\]"):
        state.switch([_at(good, 1), _at(bad, 1)])

    assert not differing(modules, pristine)
    assert state.switch(()).unchanged == 0


@pytest.mark.parametrize("value", [1e5, -1e5, float("nan"), float("inf")])
def test_a_merged_weight_that_is_not_finite_is_an_error(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState, value: float
) -> None:
    tensor = torch.zeros(pristine[_QUERY].shape)
    tensor[0, 0] = value
    bad = adapter_of("bad", {_QUERY: Whole(tensor, FailAfter())})
    good = _lora("good", modules, _KEY)

    with pytest.raises(IncompatibleAdapter, match=r"not finite: unet\.mid_block.*to_q\.weight$"):
        state.switch([_at(bad, 1), _at(good, 1)])

    assert not differing(modules, pristine)


def test_a_large_but_finite_weight_is_no_error(
    pristine: dict[Target, Tensor], state: MergedState
) -> None:
    tensor = torch.full(pristine[_QUERY].shape, 65_000.0)

    assert state.switch([_at(adapter_of("big", {_QUERY: Whole(tensor, FailAfter())}), 1)]).rewritten


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), KeyboardInterrupt(), ValueError()])
def test_a_switch_that_fails_halfway_leaves_no_adapter_merged(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState, error: BaseException
) -> None:
    fail_after = FailAfter()
    state.switch([_at(_lora("old", modules, _QUERY, _CLIP), 1)])
    new = random_mixture("new", modules, targets_of(modules), seed=3, fail_after=fail_after)
    fail_after.remaining, fail_after.error = 100, error

    with pytest.raises(type(error)):
        state.switch([_at(new, 1)])

    assert not differing(modules, pristine)
    state.switch([_at(new, 1)])
    assert not wrongly_merged(modules, pristine, [_at(new, 1)])


def test_an_interrupted_restore_is_finished_by_the_next_switch(
    modules: Modules,
    pristine: dict[Target, Tensor],
    state: MergedState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lora = _lora("one", modules, _QUERY, _CLIP)
    state.switch([_at(lora, 1)])

    def interrupted(self: Originals, targets: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Originals, "restore", interrupted)
        with pytest.raises(KeyboardInterrupt):
            state.switch(())

    state.switch(())
    assert not differing(modules, pristine)


def test_applied_restores_whatever_the_body_does(
    modules: Modules, pristine: dict[Target, Tensor], state: MergedState
) -> None:
    lora = _lora("one", modules, _QUERY, _CLIP)
    state.switch([_at(_lora("old", modules, _KEY), 1)])

    def render() -> None:
        with applied(state, [_at(lora, 1)]) as report:
            assert (report.rewritten, report.restored) == (2, 1)
            assert not wrongly_merged(modules, pristine, [_at(lora, 1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        render()

    assert not differing(modules, pristine)


@pytest.mark.parametrize(("original", "changed"), [(0.0, -0.0), (float("nan"), float("inf"))])
def test_corruption_of_a_restored_weight_is_detected(
    modules: Modules, state: MergedState, original: float, changed: float
) -> None:
    weight = modules["unet"].get_parameter(_QUERY.parameter).detach()
    weight[0, 0] = 0.0 if original == 0 else weight[0, 0]
    lora = _lora("one", modules, _QUERY)
    other = _lora("two", modules, _KEY)
    state.switch([_at(lora, 1)])
    state.switch([_at(other, 1)])
    assert state.verify()

    weight[0, 0] = changed

    assert not state.verify()
    with pytest.raises(StateCorrupted, match=r"to_q\.weight"):
        state.switch(())


def test_weights_are_verified_after_every_nth_restore(modules: Modules) -> None:
    state = _state(modules, verify_every=2)
    one, two = _lora("one", modules, _QUERY), _lora("two", modules, _KEY)
    state.switch([_at(one, 1)])
    state.switch(())
    modules["unet"].get_parameter(_QUERY.parameter).detach()[0, 0] = 7

    state.switch([_at(two, 1)])
    with pytest.raises(StateCorrupted):
        state.switch(())


def test_originals_are_saved_once(modules: Modules, state: MergedState) -> None:
    for scale in (1, 0.5, 0):
        state.switch([_at(_lora("one", modules, _QUERY), scale)])

    size_bytes = modules["unet"].get_parameter(_QUERY.parameter).nbytes
    assert (state.saved_bytes.device, state.saved_bytes.pinned) == (size_bytes, 0)


def test_compiled_code_follows_the_weights_without_compiling_again() -> None:
    """Requires in-place writes: compiled code refers to the storage it was traced with."""
    torch._dynamo.reset()
    network = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Conv1d(8, 4, 1)).requires_grad_(False)
    modules: dict[Component, nn.Module] = {"unet": network}
    state = _state(modules)
    loras = [random_lora(str(seed), modules, _weights(), rank=2, seed=seed) for seed in range(3)]
    compiled = torch.compile(network)
    latents = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    base = compiled(latents)
    graphs = counters["stats"]["unique_graphs"]

    for lora in loras:
        state.switch([_at(lora, 50)])
        with_lora = compiled(latents)
        assert not torch.allclose(with_lora, base)
        torch.testing.assert_close(with_lora, network(latents))
    state.switch(())

    assert torch.equal(compiled(latents), base)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["recompiles"]


def _weights() -> Iterator[Target]:
    return iter([Target("unet", "0.weight"), Target("unet", "2.weight")])


def test_memory_stays_flat_over_500_switches(modules: Modules, state: MergedState) -> None:
    targets = [*linear_targets("unet", modules["unet"])[::4], _CLIP]
    loras = [random_lora(str(seed), modules, targets, rank=4, seed=seed) for seed in range(20)]
    choose = random.Random(0)
    resident: list[int] = []
    tensors: list[int] = []

    for _ in range(500):
        chosen = choose.sample(loras, choose.randint(0, 3))
        state.switch([_at(lora, choose.uniform(-1, 1)) for lora in chosen])
        resident.append(psutil.Process().memory_info().rss)
        tensors.append(_count_tensors() if len(tensors) in (50, 499) else 0)

    assert max(resident[50:]) <= 1.02 * resident[50]
    assert tensors[499] == tensors[50]


def _count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
