"""Whatever jobs want and however they fail: weights are what they should be, bit for bit."""

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
from tests.random_adapters import Fuse, linear_targets, random_mixture, targets_of
from tests.weights import differing, layout, off, small_modules, tensors_of

_ADAPTERS = 4
_TARGETS = 24


class _BodyError(Exception):
    pass


class _MergeError(Exception):
    pass


@dataclass(frozen=True)
class _Step:
    kind: Literal["switch", "body raises", "merge fails"]
    uses: Sequence[tuple[int, float, float]]
    """Index of the adapter, UNet scale, text encoder scale."""
    deltas: int
    """Computed before the merge fails."""


_scales = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-2, 2)
_uses = st.tuples(st.integers(0, _ADAPTERS - 1), _scales, _scales)
_steps = st.builds(
    _Step,
    kind=st.sampled_from(["switch", "switch", "body raises", "merge fails"]),
    uses=st.lists(_uses, max_size=3),
    deltas=st.integers(0, 2 * _TARGETS),
)


@dataclass(frozen=True)
class _Bench:
    """Modules that every example leaves as it found them, and adapters that overlap on them."""

    modules: dict[Component, nn.Module]
    pristine: dict[Target, Tensor]
    adapters: list[Adapter]
    fuse: Fuse

    def wanted(self, step: _Step) -> list[ScaledAdapter]:
        return [
            ScaledAdapter(
                adapter=self.adapters[index], unet_scale=unet, text_encoder_scale=text_encoder
            )
            for index, unet, text_encoder in step.uses
        ]


@cache
def _bench(family: Family, dtype: torch.dtype) -> _Bench:
    modules = small_modules(family, dtype)
    pristine = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    fuse = Fuse(error=_MergeError())
    # Not the vocabulary: large, and no adapter has it.
    some = [target for target in targets_of(modules)[::11] if "token_" not in target.parameter]
    every = [*some, *linear_targets("unet", modules["unet"])]
    adapters = [
        random_mixture(
            str(seed), modules, every[seed::_ADAPTERS][:_TARGETS] + every[:4], seed, fuse
        )
        for seed in range(_ADAPTERS)
    ]
    return _Bench(modules, pristine, adapters, fuse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(steps=st.lists(_steps, max_size=50))
def test_any_sequence_of_sets_and_failures_leaves_no_trace(
    family: Family, dtype: torch.dtype, steps: Sequence[_Step]
) -> None:
    bench = _bench(family, dtype)
    before = layout(bench.modules)
    # Room for the copies of some sets, not of all.
    state = MergedState(bench.modules, device_budget_bytes=0, copies_bytes=2**22, verify_every=1)

    for step in steps:
        on = _take(step, state, bench)
        assert not off(bench.modules, bench.pristine, on)
    state.switch(())

    assert not differing(bench.modules, bench.pristine)
    assert layout(bench.modules) == before
    assert state.verify()


def _take(step: _Step, state: MergedState, bench: _Bench) -> list[ScaledAdapter]:
    """Do it; what is on afterwards."""
    wanted = bench.wanted(step)
    if step.kind == "body raises":
        try:
            with applied(state, wanted):
                assert not off(bench.modules, bench.pristine, wanted)
                raise _BodyError
        except _BodyError:
            return []
    bench.fuse.left = step.deltas if step.kind == "merge fails" else None
    try:
        state.switch(wanted)
    except _MergeError:
        return []
    finally:
        bench.fuse.left = None
    return wanted
