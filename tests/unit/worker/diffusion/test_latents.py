"""Latent upscale modes against references in NumPy and Pillow."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imagefleet_shared.field_types import LATENT_MODES, LatentMode
from imagefleet_worker.diffusion.latents import resize_latents

SIZES = [((8, 8), (12, 13)), ((7, 9), (14, 27)), ((8, 6), (5, 3)), ((4, 4), (4, 4))]
Pair = tuple[int, int]


def latents(height: int, width: int) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(5))


def resized(values: Tensor, size: Pair, mode: LatentMode) -> NDArray[np.float32]:
    return resize_latents(values, size[1] * 8, size[0] * 8, mode).numpy()


def by_matrix(values: Tensor, size: Pair, reach: int, kernel: str) -> NDArray[np.float64]:
    """Weights of each source line for each target line, applied to both axes."""
    result = values.numpy().astype(np.float64)
    for axis, target in ((2, size[0]), (3, size[1])):
        source = result.shape[axis]
        weights = np.zeros((target, source))
        for line in range(target):
            centre = (line + 0.5) * source / target - 0.5
            for position in range(
                int(np.floor(centre)) - reach + 1, int(np.floor(centre)) + reach + 1
            ):
                weight = weight_of(abs(centre - position), kernel)
                weights[line, min(max(position, 0), source - 1)] += weight
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return result


def weight_of(distance: float, kernel: str) -> float:
    if kernel == "linear":
        return max(0.0, 1 - distance)
    a = -0.75  # PyTorch's cubic
    if distance < 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return a * (((distance - 5) * distance + 8) * distance - 4) if distance < 2 else 0.0


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_latent_is_bilinear_and_bicubic_is_pytorchs(source: Pair, target: Pair) -> None:
    values = latents(*source)
    np.testing.assert_allclose(
        resized(values, target, "latent"), by_matrix(values, target, 1, "linear"), atol=2e-6
    )
    np.testing.assert_allclose(
        resized(values, target, "latent_bicubic"), by_matrix(values, target, 2, "cubic"), atol=5e-6
    )


@pytest.mark.parametrize(
    ("mode", "filter"),
    [
        ("latent_antialiased", Image.Resampling.BILINEAR),
        ("latent_bicubic_antialiased", Image.Resampling.BICUBIC),
    ],
)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_antialiased_modes_filter_as_pillow_does(
    source: Pair, target: Pair, mode: LatentMode, filter: Image.Resampling
) -> None:
    values = latents(*source)
    for mine, plane in zip(
        resized(values, target, mode).reshape(-1, *target),
        values.numpy().reshape(-1, *source),
        strict=True,
    ):
        theirs = Image.fromarray(plane).resize((target[1], target[0]), filter)
        np.testing.assert_allclose(mine, np.asarray(theirs), atol=2e-6)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_nearest_samples_at_the_left_edge_of_a_pixel_and_nearest_exact_at_its_centre(
    source: Pair, target: Pair
) -> None:
    values = latents(*source)
    offsets: dict[LatentMode, float] = {"latent_nearest": 0.0, "latent_nearest_exact": 0.5}
    for mode, offset in offsets.items():
        rows, columns = (
            np.floor((np.arange(t) + offset) * s / t).astype(int)
            for s, t in zip(source, target, strict=True)
        )
        expected = values.numpy()[:, :, rows][:, :, :, columns]
        np.testing.assert_array_equal(resized(values, target, mode), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", LATENT_MODES)
def test_every_mode_preserves_the_dtype_on_the_cpu(mode: LatentMode, dtype: torch.dtype) -> None:
    result = resize_latents(latents(8, 8).to(dtype), 96, 128, mode)
    assert (result.dtype, result.shape) == (dtype, (2, 4, 16, 12))
