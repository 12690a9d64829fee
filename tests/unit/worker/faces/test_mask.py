"""The mask by which a restored face is pasted into the picture."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from imagefleet_worker.faces.mask import soft_mask


def logits_of(labels: Tensor) -> Tensor:
    """Parser logits for labels `(512, 512)`."""
    return torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1)[None].float()


def uniform_logits(label: int) -> Tensor:
    return logits_of(torch.full((512, 512), label))


@pytest.mark.parametrize("label", [1, 2, 4, 9, 11, 13, 15])
def test_skin_features_hair_and_earrings_are_included_up_to_a_border(label: int) -> None:
    mask = soft_mask(uniform_logits(label))
    assert mask.shape == (1, 1, 512, 512)
    assert torch.allclose(mask[..., 10:-10, 10:-10], torch.ones(1), atol=1e-5)
    assert mask[..., :10, :].max() == mask[..., -10:].max() == 0


@pytest.mark.parametrize("label", [0, 14, 16, 17, 18])
def test_background_hat_necklace_neck_and_cloth_are_excluded(label: int) -> None:
    assert soft_mask(uniform_logits(label)).max() == 0


def test_edges_are_blurred_twice_by_eleven_pixels() -> None:
    labels = torch.zeros(512, 512, dtype=torch.long)
    labels[100:300, 150:400] = 1
    blurred = gaussian_filter((labels == 1).numpy().astype(np.float64), 11, truncate=50 / 11)
    blurred = gaussian_filter(blurred, 11, truncate=50 / 11)
    difference = soft_mask(logits_of(labels))[0, 0, 10:-10, 10:-10] - torch.from_numpy(
        blurred[10:-10, 10:-10]
    )
    assert difference.abs().max() < 1e-4
