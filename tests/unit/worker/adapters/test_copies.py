"""Merged weights that are kept for when their set comes back."""

import pytest
import torch

from imagefleet_worker.adapters.copies import MergedCopies
from imagefleet_worker.adapters.delta import Target
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.adapters.wanted import ScaledAdapter
from tests.random_adapters import Fuse, linear_targets, random_mixture
from tests.weights import differing, small_modules, tensors_of

WEIGHT = Target("unet", "weight")


def weights(value: float) -> dict[Target, torch.Tensor]:
    return {WEIGHT: torch.full((16,), value)}


def state(name: str) -> tuple[tuple[str, float, float], ...]:
    return ((name, 1.0, 1.0),)


def test_a_copy_is_what_was_given_whatever_becomes_of_that() -> None:
    copies, merged = MergedCopies(10**6), weights(1.0)
    copies.keep(state("a"), merged)
    merged[WEIGHT].zero_()
    kept = copies.find(state("a"))
    assert kept is not None
    assert torch.equal(kept[WEIGHT], torch.ones(16))
    assert copies.find(state("b")) is None


def test_the_set_used_longest_ago_makes_room() -> None:
    copies = MergedCopies(2 * 64)
    for name in ("a", "b"):
        copies.keep(state(name), weights(1.0))
    copies.find(state("a"))
    copies.keep(state("c"), weights(1.0))
    assert [name for name in "abc" if copies.find(state(name))] == ["a", "c"]
    assert copies.size_bytes == 2 * 64


def test_a_set_larger_than_the_budget_is_not_kept() -> None:
    copies = MergedCopies(63)
    copies.keep(state("a"), weights(1.0))
    assert copies.find(state("a")) is None
    assert copies.size_bytes == 0


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
