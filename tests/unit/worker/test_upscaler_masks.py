"""SwinIR with our masks against plain spandrel."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imagefleet_worker.upscale.masks import shift_mask
from imagefleet_worker.upscale.models import Upscaler, load_upscaler
from tools.make_demo_upscaler import make_demo_upscaler

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")

CPU = torch.device("cpu")
# native (16 x 16), a multiple of the window, and sizes that SwinIR pads
SIZES = [(16, 16), (64, 48), (17, 33), (7, 5), (1, 1), (100, 90)]


@pytest.fixture(scope="module", params=[2, 4], ids=["x2", "x4"])
def swinir_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scale: int = request.param
    path = tmp_path_factory.mktemp("upscalers") / f"demo-x{scale}.safetensors"
    save_file(make_demo_upscaler(scale, seed=scale), path)
    return path


@pytest.fixture
def x2_file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.safetensors"
    save_file(make_demo_upscaler(2, seed=2), path)
    return path


def plain(path: Path) -> ImageModelDescriptor[nn.Module]:
    """The same file by spandrel alone."""
    descriptor = ModelLoader("cpu").load_from_file(path)
    assert isinstance(descriptor, ImageModelDescriptor)
    return descriptor


def photo(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return interpolate(coarse, size=(height, width), mode="bilinear")


def ignore(done: int, total: int) -> None:
    pass


def whole(upscaler: Upscaler, image: Tensor) -> Tensor:
    return upscaler.upscale(image, tile_size=512, tile_overlap=16, on_tile=ignore)


@pytest.mark.parametrize("size", SIZES)
def test_swinir_gives_what_plain_spandrel_gives_bit_for_bit(
    swinir_file: Path, size: tuple[int, int]
) -> None:
    upscaler = load_upscaler(swinir_file, CPU, torch.float32)
    expected = plain(swinir_file)(photo(*size))
    for _ in range(2):  # with the mask made, then with the mask kept
        assert torch.equal(whole(upscaler, photo(*size)), expected)


@pytest.mark.parametrize("size", [(16, 24), (64, 64), (72, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_are_spandrels(x2_file: Path, size: tuple[int, int], dtype: torch.dtype) -> None:
    model = plain(x2_file).model
    assert isinstance(model, SwinIR)
    blocks = [m for m in model.modules() if hasattr(m, "calculate_mask")]
    calculate = cast("Callable[[tuple[int, int]], Tensor]", blocks[1].calculate_mask)
    assert torch.equal(shift_mask(*size, 8, 4, CPU, dtype), calculate(size).to(dtype))


@pytest.mark.parametrize("size", SIZES)
def test_swinir_runs_in_bfloat16_at_every_size(x2_file: Path, size: tuple[int, int]) -> None:
    upscaler = Upscaler("demo", plain(x2_file), torch.bfloat16)
    enlarged = whole(upscaler, photo(*size))
    assert enlarged.dtype == torch.float32
    # bfloat16 has steps of 1/256 below 1.
    torch.testing.assert_close(enlarged, plain(x2_file)(photo(*size)), rtol=0, atol=0.015)


def test_the_plain_swinir_fails_in_bfloat16_off_its_native_size(x2_file: Path) -> None:
    """Why the masks are cached by dtype; when this fails, spandrel has mended it."""
    with pytest.raises(RuntimeError, match="dtype"):
        plain(x2_file).bfloat16()(photo(64, 48).bfloat16())
