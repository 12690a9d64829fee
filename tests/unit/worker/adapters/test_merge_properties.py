"""After any sequence of switches and failures, weights are as expected, bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imagefleet_worker.adapters.delta import Adapter, Component, Target
from imagefleet_worker.adapters.merge import MergedState, applied
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.weights.families import Family
from tests.random_adapters import FailAfter, linear_targets, random_mixture, targets_of
from tests.weights import differing, layout, small_modules, tensors_of, wrongly_merged

_ADAPTERS = 4
_TARGETS = 24


class _BodyError(Exception):
    pass


class _MergeError(Exception):
    pass


@dataclass(frozen=True)
class _Step:
    kind: Literal["switch", "body raises", "merge fails"]
    loras: Sequence[tuple[int, float, float]]
    """Index of the adapter, UNet scale, text encoder scale."""
    deltas: int
    """Number of deltas computed before the merge fails."""


_scales = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-2, 2)
_loras = st.tuples(st.integers(0, _ADAPTERS - 1), _scales, _scales)
_steps = st.builds(
    _Step,
    kind=st.sampled_from(["switch", "switch", "body raises", "merge fails"]),
    loras=st.lists(_loras, max_size=3),
    deltas=st.integers(0, 2 * _TARGETS),
)


@dataclass(frozen=True)
class _Setup:
    """Modules that every example must leave unchanged, and adapters with overlapping targets."""

    modules: dict[Component, nn.Module]
    pristine: dict[Target, Tensor]
    adapters: list[Adapter]
    fail_after: FailAfter

    def adapters_of(self, step: _Step) -> list[ScaledAdapter]:
        return [
            ScaledAdapter(
                adapter=self.adapters[index], unet_scale=unet, text_encoder_scale=text_encoder
            )
            for index, unet, text_encoder in step.loras
        ]


@cache
def _setup(family: Family, dtype: torch.dtype) -> _Setup:
    modules = small_modules(family, dtype)
    pristine = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    fail_after = FailAfter(error=_MergeError())
    # Without token embeddings: they are large, and no adapter changes them.
    some = [target for target in targets_of(modules)[::11] if "token_" not in target.parameter]
    every = [*some, *linear_targets("unet", modules["unet"])]
    adapters = [
        random_mixture(
            str(seed), modules, every[seed::_ADAPTERS][:_TARGETS] + every[:4], seed, fail_after
        )
        for seed in range(_ADAPTERS)
    ]
    return _Setup(modules, pristine, adapters, fail_after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(steps=st.lists(_steps, max_size=50))
def test_any_sequence_of_sets_and_failures_leaves_no_trace(
    family: Family, dtype: torch.dtype, steps: Sequence[_Step]
) -> None:
    setup = _setup(family, dtype)
    before = layout(setup.modules)
    # The cache fits some sets, but not all.
    state = MergedState(
        setup.modules, device_budget_bytes=0, merged_cache_bytes=2**22, verify_every=1
    )

    for step in steps:
        merged = _run_step(step, state, setup)
        assert not wrongly_merged(setup.modules, setup.pristine, merged)
    state.switch(())

    assert not differing(setup.modules, setup.pristine)
    assert layout(setup.modules) == before
    assert state.verify()


def _run_step(step: _Step, state: MergedState, setup: _Setup) -> list[ScaledAdapter]:
    """Run a step; returns the adapters that should be merged afterwards."""
    adapters = setup.adapters_of(step)
    if step.kind == "body raises":
        try:
            with applied(state, adapters):
                assert not wrongly_merged(setup.modules, setup.pristine, adapters)
                raise _BodyError
        except _BodyError:
            return []
    setup.fail_after.remaining = step.deltas if step.kind == "merge fails" else None
    try:
        state.switch(adapters)
    except _MergeError:
        return []
    finally:
        setup.fail_after.remaining = None
    return adapters
