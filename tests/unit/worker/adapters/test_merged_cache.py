"""The cache of merged weights of earlier adapter sets."""

import pytest
import torch

from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.adapters.scaled import ScaledAdapter
from tests.random_adapters import FailAfter, linear_targets, random_mixture
from tests.weights import differing, small_modules, tensors_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cached_set_is_copied_and_not_computed(dtype: torch.dtype) -> None:
    modules, fail_after = small_modules("sd1", dtype), FailAfter()
    targets = linear_targets("unet", modules["unet"])
    one, other = (
        [
            ScaledAdapter(
                adapter=random_mixture(name, modules, subset, seed, fail_after),
                unet_scale=0.7,
                text_encoder_scale=0.7,
            )
        ]
        for name, subset, seed in (("one", targets[:9], 1), ("other", targets[5:], 2))
    )
    merged = MergedState(modules, device_budget_bytes=0, merged_cache_bytes=10**9, verify_every=1)
    pristine = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    merged.switch(one)
    first = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    merged.switch(other)

    fail_after.remaining = 0  # The next computed delta raises.
    merged.switch(one)
    assert not differing(modules, first)
    assert merged.cached_bytes > 0
    merged.switch(())
    assert not differing(modules, pristine)


def test_a_set_larger_than_the_cache_is_computed_each_time() -> None:
    modules, fail_after = small_modules("sd1", torch.float32), FailAfter()
    adapter = random_mixture(
        "one", modules, linear_targets("unet", modules["unet"])[:9], 1, fail_after
    )
    adapters = [ScaledAdapter(adapter=adapter, unet_scale=1, text_encoder_scale=1)]
    merged = MergedState(modules, device_budget_bytes=0, merged_cache_bytes=1000, verify_every=1)
    merged.switch(adapters)
    assert merged.cached_bytes == 0
    merged.switch(())
    fail_after.remaining = 0
    with pytest.raises(type(fail_after.error)):
        merged.switch(adapters)
