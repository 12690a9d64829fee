"""Tiling, with networks whose receptive field is known."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from imagefleet_worker.upscale.tiles import Tiling, feather_weights, plan_axis, tiled_rows

SIZES = [(1, 1), (7, 5), (30, 400), (255, 257), (400, 30), (96, 96)]
# (tile_size, tile_overlap); the last overlap is the default.
TILINGS = [(16, 0), (16, 7), (24, 8), (64, 16), (256, 16)]
REACH_PX = 2


def photo(height: int, width: int) -> Tensor:
    """A smooth picture with some detail, `(1, 3, height, width)` in [0, 1]."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    smooth = interpolate(coarse, size=(height, width), mode="bilinear")
    fine = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(4))
    return 0.9 * smooth + 0.1 * fine


def nearest(image: Tensor) -> Tensor:
    return interpolate(image, scale_factor=2, mode="nearest")


def blur(image: Tensor) -> Tensor:
    """A 5 x 5 mean of every colour, doubled: each pixel depends on REACH_PX pixels around it."""
    kernel = torch.full((3, 1, 5, 5), 1 / 25)
    return nearest(conv2d(image, kernel, padding=REACH_PX, groups=3))


def ignore(done: int, total: int) -> None:
    pass


def run_tiled(
    image: Tensor,
    scale: int,
    tiling: Tiling,
    network: Callable[[Tensor], Tensor],
    on_tile: Callable[[int, int], None] = ignore,
) -> Tensor:
    return torch.cat(list(tiled_rows(image, scale, tiling, network, on_tile)), dim=2)


def near_seams(length: int, tile_size: int, tile_overlap: int) -> Tensor:
    """`(2 * length,)` bool: output pixels of one axis within reach of an inner tile border."""
    near = torch.zeros(length, dtype=torch.bool)
    for span in plan_axis(length, tile_size, tile_overlap):
        for border in span:
            if 0 < border < length:
                near[max(border - REACH_PX, 0) : border + REACH_PX] = True
    return near.repeat_interleave(2)


@pytest.mark.parametrize(("tile_size", "tile_overlap"), TILINGS)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_the_picture_and_blending_keeps_equal_values(
    size: tuple[int, int], tile_size: int, tile_overlap: int
) -> None:
    image = photo(*size)
    tiled = run_tiled(image, 2, Tiling(tile_size, tile_overlap), nearest)
    assert tiled.dtype == torch.float32
    torch.testing.assert_close(tiled, nearest(image), rtol=0, atol=3e-7)


@pytest.mark.parametrize(("tile_size", "tile_overlap"), TILINGS)
@pytest.mark.parametrize("size", SIZES)
def test_only_pixels_within_reach_of_a_tile_border_differ_from_the_untiled_result(
    size: tuple[int, int], tile_size: int, tile_overlap: int
) -> None:
    image = photo(*size)
    difference = (run_tiled(image, 2, Tiling(tile_size, tile_overlap), blur) - blur(image)).abs()
    rows, columns = (near_seams(length, tile_size, tile_overlap) for length in size)
    far = ~(rows[:, None] | columns[None, :])
    assert difference[..., far].numel() == 0 or difference[..., far].max() < 1e-6
    # 3 of 5 rows of the kernel may lie outside a tile; at most half weight with an overlap.
    assert difference.max() < (0.75 if tile_overlap == 0 else 0.25)


def test_a_wide_overlap_stays_close_to_the_untiled_result_at_the_seams() -> None:
    image = photo(96, 96)
    difference = (run_tiled(image, 2, Tiling(64, 24), blur) - blur(image)).abs()
    assert difference.max() < 0.03


def test_the_gradient_across_seams_is_no_larger_than_without_tiling() -> None:
    image = interpolate(torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(5)), 96)
    tiled = run_tiled(image, 2, Tiling(40, 12), blur)[..., 8:-8, 8:-8]
    whole = blur(image)[..., 8:-8, 8:-8]
    for axis in (-1, -2):
        assert tiled.diff(dim=axis).abs().max() <= whole.diff(dim=axis).abs().max() + 0.01


@pytest.mark.parametrize("length", [1, 8, 16, 17, 23, 24, 30, 31, 100, 257, 512, 4000])
@pytest.mark.parametrize(("tile_size", "tile_overlap"), [*TILINGS, (24, 11), (8, 0)])
def test_a_plan_covers_the_axis_with_the_requested_overlap_in_the_fewest_equal_tiles(
    length: int, tile_size: int, tile_overlap: int
) -> None:
    spans = plan_axis(length, tile_size, tile_overlap)
    if length <= tile_size:
        assert spans == ((0, length),)
        return
    assert (spans[0][0], spans[-1][1]) == (0, length)
    assert all(before[1] - after[0] >= tile_overlap for before, after in pairwise(spans))
    assert all(after[0] > before[0] and after[1] > before[1] for before, after in pairwise(spans))
    assert all(start % 8 == 0 for start, _ in spans)
    sizes = {end - start for start, end in spans[:-1]}
    assert len(sizes) == 1
    assert max(sizes) <= tile_size
    assert max(sizes) - 8 < spans[-1][1] - spans[-1][0] <= max(sizes)
    # No plan with fewer tiles would do, on the window grid.
    step = tile_size - -(-tile_overlap // 8) * 8
    assert (len(spans) - 2) * step + tile_size < -(-length // 8) * 8


def test_tiles_are_no_larger_than_their_number_requires() -> None:
    """Two tiles of 256 for 288 pixels would compute 224 pixels twice."""
    assert plan_axis(288, 256, 16) == ((0, 152), (136, 288))


def test_batched_tiles_have_equal_sizes_and_the_same_result_as_single_ones() -> None:
    image = photo(30, 250)
    calls: list[torch.Size] = []

    def recording_blur(tiles: Tensor) -> Tensor:
        calls.append(tiles.shape)
        return blur(tiles)

    batched = run_tiled(image, 2, Tiling(64, 16, batch=3), recording_blur)
    assert [len(shape) for shape in calls] == [4] * len(calls)
    assert [shape[0] for shape in calls] == [3, 1, 1]
    assert [shape[3] for shape in calls] == [64, 64, 58]
    torch.testing.assert_close(batched, run_tiled(image, 2, Tiling(64, 16), blur), rtol=0, atol=0)


def test_rows_are_yielded_once_no_later_tile_reaches_them() -> None:
    """A picture of any height takes the memory of one row of tiles."""
    heights = [
        rows.shape[2] for rows in tiled_rows(photo(400, 20), 2, Tiling(64, 16), blur, ignore)
    ]
    assert sum(heights) == 800
    assert max(heights) <= 2 * 64


def test_feather_weights_sum_to_one_and_vanish_at_inner_borders_only() -> None:
    spans = plan_axis(257, 64, 16)
    weights = feather_weights(spans, 4)
    total = torch.zeros(257 * 4)
    for (start, end), weight in zip(spans, weights, strict=True):
        total[start * 4 : end * 4] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=3e-7)
    assert weights[0][0] == 1
    assert weights[-1][-1] == 1
    assert all(weight[0] < 0.02 for weight in weights[1:])
    assert all(weight[-1] < 0.02 for weight in weights[:-1])


def test_a_picture_that_fits_one_tile_takes_one_call_with_the_exact_output() -> None:
    image = photo(64, 40)
    calls: list[tuple[int, int]] = []
    tiled = run_tiled(
        image, 2, Tiling(64, 16), blur, lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 1)]
    assert torch.equal(tiled, blur(image))


def test_every_finished_tile_is_reported() -> None:
    calls: list[tuple[int, int]] = []
    run_tiled(
        photo(96, 96), 2, Tiling(64, 16), blur, lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_exception_from_on_tile_ends_the_run() -> None:
    calls: list[int] = []

    def cancel(done: int, total: int) -> None:
        calls.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tiled(photo(96, 96), 2, Tiling(64, 16), blur, cancel)
    assert calls == [1, 2]


@pytest.mark.parametrize(
    ("tile_size", "tile_overlap"), [(16, 8), (16, 9), (16, -1), (0, 0), (20, 4)]
)
def test_an_invalid_tiling_raises_value_error(tile_size: int, tile_overlap: int) -> None:
    with pytest.raises(ValueError, match="tile_overlap"):
        run_tiled(photo(8, 8), 2, Tiling(tile_size, tile_overlap), nearest)


def test_half_precision_tiles_are_blended_in_float32() -> None:
    image = photo(40, 40).bfloat16()
    tiled = run_tiled(image, 2, Tiling(16, 4), nearest)
    assert tiled.dtype == torch.float32
    torch.testing.assert_close(tiled, nearest(image).float(), rtol=0, atol=3e-7)
