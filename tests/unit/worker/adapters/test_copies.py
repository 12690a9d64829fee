"""Merged weights that are kept for when their set comes back."""

import pytest
import torch

from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.adapters.scaled import ScaledAdapter
from tests.random_adapters import Fuse, linear_targets, random_mixture
from tests.weights import differing, small_modules, tensors_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_set_that_comes_back_is_copied_and_not_computed(dtype: torch.dtype) -> None:
    modules, fuse = small_modules("sd1", dtype), Fuse()
    targets = linear_targets("unet", modules["unet"])
    one, other = (
        [
            ScaledAdapter(
                adapter=random_mixture(name, modules, own, seed, fuse),
                unet_scale=0.7,
                text_encoder_scale=0.7,
            )
        ]
        for name, own, seed in (("one", targets[:9], 1), ("other", targets[5:], 2))
    )
    merged = MergedState(modules, device_budget_bytes=0, copies_bytes=10**9, verify_every=1)
    pristine = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    merged.switch(one)
    first = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    merged.switch(other)

    fuse.left = 0  # The next delta that is computed raises.
    merged.switch(one)
    assert not differing(modules, first)
    assert merged.copied_bytes > 0
    merged.switch(())
    assert not differing(modules, pristine)


def test_a_set_that_takes_more_than_there_is_room_for_is_computed_each_time() -> None:
    modules, fuse = small_modules("sd1", torch.float32), Fuse()
    adapter = random_mixture("one", modules, linear_targets("unet", modules["unet"])[:9], 1, fuse)
    wanted = [ScaledAdapter(adapter=adapter, unet_scale=1, text_encoder_scale=1)]
    merged = MergedState(modules, device_budget_bytes=0, copies_bytes=1000, verify_every=1)
    merged.switch(wanted)
    assert merged.copied_bytes == 0
    merged.switch(())
    fuse.left = 0
    with pytest.raises(type(fuse.error)):
        merged.switch(wanted)
