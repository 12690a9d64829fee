"""The effect of tiling on real pictures, with the trained demo upscaler."""

from itertools import cycle, pairwise

import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.load import load_upscaler
from imagefleet_worker.upscale.memory import CPU_TILE_PX
from imagefleet_worker.upscale.tiles import Tiling, plan_axis
from imagefleet_worker.upscale.upscaler import Upscaler
from tests.fleet import REPOSITORY
from tools.training.pictures import Pose, draw
from tools.training.scenes import held_out_scenes

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")

DEFAULT_OVERLAP: int = UpscalePass.model_fields["tile_overlap"].default
TRAINED = REPOSITORY / "worker/models/upscalers/demo-x2.safetensors"
# (width, height) of Set5, then unusual ones.
SET5 = [(512, 512), (288, 288), (256, 256), (280, 280), (228, 344)]
ODD = [(1, 1), (7, 5), (255, 257), (4000, 30)]
MIN_DB = 40
_SIDE_PX, _OFFSET_PX = 64, 21


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return load_upscaler(TRAINED, torch.device("cpu"), torch.float32)


def ignore(done: int, total: int) -> None:
    pass


def picture(width: int, height: int) -> Tensor:
    """Pictograms, as the demo upscaler was trained on, with edges off the tile borders."""
    scenes = cycle(held_out_scenes(tinted=True))
    image = Image.new("RGB", (width, height))
    for top in range(-_OFFSET_PX, height, _SIDE_PX):
        for left in range(-_OFFSET_PX, width, _SIDE_PX):
            image.paste(draw(next(scenes), Pose()).resize((_SIDE_PX, _SIDE_PX)), (left, top))
    return to_unit_range(image)


def enlarged(upscaler: Upscaler, image: Tensor, tiling: Tiling) -> Tensor:
    with torch.no_grad():
        return torch.cat(list(upscaler.rows(image, tiling, ignore)), dim=2)


def psnr_db(one: Tensor, other: Tensor) -> float:
    return -10 * torch.log10((one - other).square().mean() + 1e-12).item()


@pytest.mark.parametrize(("width", "height"), [*SET5, *ODD])
def test_pictures_of_any_size_are_doubled(upscaler: Upscaler, width: int, height: int) -> None:
    image = picture(width, height)
    result = upscaler.upscale(image, tile_size=None, tile_overlap=DEFAULT_OVERLAP, on_tile=ignore)
    assert (result.mode, result.size) == ("RGB", (2 * width, 2 * height))


@pytest.mark.parametrize(("width", "height"), [(255, 257), (4000, 30), (288, 288), (228, 344)])
@pytest.mark.parametrize("tile_size", [64, 128, 192])
def test_tiling_at_the_default_overlap_keeps_40_db(
    upscaler: Upscaler, width: int, height: int, tile_size: int
) -> None:
    image = picture(width, height)
    whole = enlarged(upscaler, image, Tiling(4096, DEFAULT_OVERLAP))
    decibels = {
        overlap: psnr_db(enlarged(upscaler, image, Tiling(tile_size, overlap)), whole)
        for overlap in (0, 4, 8, DEFAULT_OVERLAP, 32)
        if 2 * overlap < tile_size
    }
    figures = ", ".join(f"{overlap} px {value:.1f} dB" for overlap, value in decibels.items())
    print(f"{width}x{height}, tiles of {tile_size}: {figures}")
    assert decibels[DEFAULT_OVERLAP] >= MIN_DB
    assert decibels[DEFAULT_OVERLAP] >= decibels[0]


def test_results_of_different_tile_sizes_agree_to_40_db(upscaler: Upscaler) -> None:
    """The bound stated in the README: at least 40 dB between any two tile sizes."""
    image = picture(256, 256)
    results = [
        enlarged(upscaler, image, Tiling(size, DEFAULT_OVERLAP))
        for size in (40, 64, 128, CPU_TILE_PX)
    ]
    for one, other in pairwise(results):
        assert psnr_db(one, other) >= MIN_DB


def test_no_seam_is_visible_at_tile_borders(upscaler: Upscaler) -> None:
    """The gradient across borders is no larger than without tiling."""
    image, tile_size = picture(255, 257), 64
    whole = enlarged(upscaler, image, Tiling(4096, DEFAULT_OVERLAP))
    for overlap in (0, 4, 8, DEFAULT_OVERLAP):
        tiled = enlarged(upscaler, image, Tiling(tile_size, overlap))
        excess = max(
            _gradient_across_borders(tiled, axis, overlap)
            - _gradient_across_borders(whole, axis, overlap)
            for axis in (2, 3)
        )
        print(f"overlap {overlap}: mean gradient across borders larger by {excess:.6f}")
        if overlap == DEFAULT_OVERLAP:
            assert excess < 1e-4


def _gradient_across_borders(image: Tensor, axis: int, overlap: int) -> float:
    """Mean difference of the output pixels on both sides of every inner tile border."""
    length = image.shape[axis] // 2
    borders = {edge for span in plan_axis(length, 64, overlap) for edge in span} - {0, length}
    positions = torch.tensor(sorted(2 * border - 1 for border in borders))
    return image.diff(dim=axis).index_select(axis, positions).abs().mean().item()
