"""Blending latents, in batches with and without masks."""

import pytest
import torch

from imagefleet_worker.inpaint.blend import LatentMask


def latents(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def half_mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., :2] = 1
    return mask


def test_unmasked_latents_are_bitwise_unchanged() -> None:
    original, clean = latents(1), latents(2)
    blend = LatentMask.from_masks([half_mask(), 1 - half_mask()], original)
    assert blend is not None
    result = blend.blend(clean)
    assert torch.equal(result[0, :, :, :2], clean[0, :, :, :2])
    assert torch.equal(result[0, :, :, 2:], original[0, :, :, 2:])
    assert torch.equal(result[1, :, :, :2], original[1, :, :, :2])
    assert torch.equal(result[1, :, :, 2:], clean[1, :, :, 2:])


def test_pictures_without_a_mask_are_generated_everywhere() -> None:
    original, clean = latents(1), latents(2)
    blend = LatentMask.from_masks([None, half_mask()], original)
    assert blend is not None
    assert torch.equal(blend.blend(clean)[0], clean[0])
    assert not torch.equal(blend.blend(clean)[1], clean[1])


def test_a_batch_without_masks_needs_no_blending() -> None:
    assert LatentMask.from_masks([None, None], latents(1)) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masks_have_the_dtype_of_the_latents(dtype: torch.dtype) -> None:
    blend = LatentMask.from_masks([half_mask(), None], latents(1).to(dtype))
    assert blend is not None
    assert blend.mask.shape == (2, 1, 3, 5)
    assert blend.blend(latents(2).to(dtype)).dtype == dtype


def test_a_grey_mask_mixes() -> None:
    blend = LatentMask(torch.full((1, 1, 1, 1), 0.25), torch.full((1, 4, 1, 1), 8.0))
    assert torch.equal(blend.blend(torch.full((1, 4, 1, 1), 4.0)), torch.full((1, 4, 1, 1), 7.0))
