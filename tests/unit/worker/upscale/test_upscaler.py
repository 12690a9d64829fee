"""Running upscalers: precision, tiles and cancellation, with tiny real networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel import Architecture, ImageModelDescriptor, StateDict
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imagefleet_shared.errors import CorruptFile, JobCanceled
from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.architectures import build_descriptor
from imagefleet_worker.upscale.load import load_upscaler, pick_dtype
from imagefleet_worker.upscale.tiles import Tiling
from imagefleet_worker.upscale.upscaler import Upscaler
from tests.fleet import REPOSITORY
from tools.make_demo_upscaler import make_demo_upscaler

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")

CPU = torch.device("cpu")


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


def photo(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return interpolate(coarse, size=(height, width), mode="bilinear")


def ignore(done: int, total: int) -> None:
    pass


def tiled(
    upscaler: Upscaler,
    image: Tensor,
    tile_size: int,
    tile_overlap: int,
    on_tile: Callable[[int, int], None] = ignore,
) -> Tensor:
    tiling = Tiling(tile_size, tile_overlap)
    with torch.no_grad():
        return torch.cat(list(upscaler.rows(image, tiling, on_tile)), dim=2)


def whole(upscaler: Upscaler, image: Tensor) -> Tensor:
    return tiled(upscaler, image, 512, 16)


def test_the_demo_upscaler_is_bilinear_plus_a_faint_texture(swinir_file: Path) -> None:
    upscaler = load_upscaler(swinir_file, CPU, torch.float32)
    image = photo(48, 64)
    enlarged = whole(upscaler, image)
    expected = interpolate(image, scale_factor=upscaler.scale, mode="bilinear")
    inner = slice(upscaler.scale, -upscaler.scale)
    difference = (enlarged - expected).abs()[..., inner, inner].max()
    assert 0.001 < difference < 0.03


def test_the_demo_upscaler_is_deterministic() -> None:
    first, second = make_demo_upscaler(2, seed=7), make_demo_upscaler(2, seed=7)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert sum(tensor.nbytes for tensor in first.values()) < 500_000


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (255, 257), (400, 30)])
def test_tiling_changes_little(x2_file: Path, size: tuple[int, int]) -> None:
    upscaler = load_upscaler(x2_file, CPU, torch.float32)
    image = photo(*size)
    result = tiled(upscaler, image, 64, 16)
    assert result.shape == (1, 3, 2 * size[0], 2 * size[1])
    difference = (result - whole(upscaler, image)).abs()
    # SwinIR pads the whole picture to windows of 8, but not the tiles: the edge may differ.
    inner = difference[..., 2:-2, 2:-2]
    assert inner.numel() == 0 or inner.max() < 0.01
    assert difference.mean() < 0.002


def test_a_picture_on_the_window_grid_differs_little_at_seams_and_not_elsewhere(
    x2_file: Path,
) -> None:
    upscaler = load_upscaler(x2_file, CPU, torch.float32)
    image = photo(256, 256)
    result = tiled(upscaler, image, 192, 16)
    expected = whole(upscaler, image)
    # Tiles begin at 0 and 64, so the inner borders are at 64 and 192. This network's receptive
    # field is four attention windows and a few convolutions: the first 20 pixels reach neither.
    difference = (result - expected).abs()
    assert difference.max() < 0.004
    assert difference[..., :40, :40].max() < 1e-6
    for axis in (-1, -2):
        assert result.diff(dim=axis).abs().max() <= expected.diff(dim=axis).abs().max() + 0.004


def test_canceling_between_tiles_leaves_the_upscaler_unchanged(x2_file: Path) -> None:
    upscaler = load_upscaler(x2_file, CPU, torch.float32)
    image = photo(100, 90)
    expected = tiled(upscaler, image, 40, 8)
    done: list[int] = []

    def cancel(tile: int, total: int) -> None:
        done.append(tile)
        if tile == 2:
            raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        tiled(upscaler, image, 40, 8, cancel)
    assert done == [1, 2]
    again = tiled(upscaler, image, 40, 8)
    assert torch.equal(again, expected)


class Overflowing(nn.Module):
    """Doubles a picture; intermediate bright values exceed the range of float16 (65504)."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([gain]))
        self.shrink = nn.Parameter(torch.tensor([1 / 3.0]))

    def forward(self, image: Tensor) -> Tensor:
        return interpolate(image * self.gain * self.gain / self.gain, scale_factor=2) * self.shrink


class OverflowingArchitecture(Architecture[Overflowing]):
    def __init__(self, network: type[Overflowing]) -> None:
        super().__init__(id="Overflowing", detect=lambda weights: "gain" in weights)
        self._network = network

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[Overflowing]:
        return ImageModelDescriptor(
            self._network(1.0),
            state_dict,
            architecture=self,
            purpose="SR",
            tags=[],
            supports_half=True,
            supports_bfloat16=True,
            scale=2,
            input_channels=3,
            output_channels=3,
        )


def overflowing(
    gain: float, dtype: torch.dtype, network: type[Overflowing] = Overflowing
) -> tuple[Overflowing, Upscaler]:
    descriptor = OverflowingArchitecture(network).load(Overflowing(gain).state_dict())
    return descriptor.model, Upscaler("overflowing", descriptor, dtype)


def test_a_tile_that_overflows_in_half_precision_is_run_again_in_float32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """spandrel clamps to [0, 1], which would turn undetected infinity into plain white."""
    gain = 30_000.0
    model, upscaler = overflowing(gain, torch.float16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = torch.full((1, 3, 16, 32), 0.1)
    expected[..., 16:] = 0.9
    image = expected[..., ::2, ::2] * 3 / gain
    enlarged = tiled(upscaler, image, 8, 0)
    torch.testing.assert_close(enlarged, expected, rtol=0.01, atol=0)
    assert len(caplog.records) == 1  # of two tiles, the bright one
    after = model.state_dict()
    assert all(after[name].dtype == torch.float16 for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)


class OutOfMemoryOnce(Overflowing):
    """Runs out of memory after its first cast to float32."""

    ran_out = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        if self.gain.dtype == torch.float32 and not self.ran_out:
            self.ran_out = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self


def test_running_out_of_memory_while_upcasting_leaves_the_weights_unchanged() -> None:
    """The weights once stayed in float32, and later jobs failed on tiles of another dtype."""
    gain = 30_000.0
    model, upscaler = overflowing(gain, torch.float16, OutOfMemoryOnce)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.full((1, 3, 8, 8), 2.7 / gain)
    result = upscaler.upscale(image, tile_size=None, tile_overlap=0, on_tile=ignore)
    assert cast(OutOfMemoryOnce, model).ran_out
    torch.testing.assert_close(
        to_unit_range(result), torch.full((1, 3, 16, 16), 0.9), rtol=0.01, atol=0
    )
    after = model.state_dict()
    assert all(after[name].dtype == torch.float16 for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_network_that_is_not_finite_in_float32_is_a_corrupt_file() -> None:
    _, upscaler = overflowing(float("nan"), torch.float32)
    with pytest.raises(CorruptFile, match="not finite"):
        whole(upscaler, photo(8, 8))


def test_a_cpu_runs_in_float32_if_float16_is_requested(x2_file: Path) -> None:
    half, single = (load_upscaler(x2_file, CPU, d) for d in (torch.float16, torch.float32))
    assert half.size_bytes == single.size_bytes
    assert torch.equal(whole(half, photo(20, 20)), whole(single, photo(20, 20)))


@pytest.mark.parametrize(
    ("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_swinir_does_not_run_in_bfloat16_on_a_gpu_that_emulates_it(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, expected: torch.dtype
) -> None:
    """torch reports bfloat16 support on a T4 unless emulation is excluded."""

    def supported(including_emulation: bool = True) -> bool:
        return has_bfloat16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    swinir = build_descriptor(make_demo_upscaler(2, seed=2))
    assert isinstance(swinir, ImageModelDescriptor)
    for preferred in (torch.float16, torch.bfloat16):
        assert pick_dtype(swinir, torch.device("cuda"), preferred) == expected


def test_bfloat16_is_50_db_from_float32() -> None:
    """Measured on the trained upscaler; one 8-bit level is 59 dB."""
    trained = REPOSITORY / "worker/models/upscalers/demo-x2.safetensors"
    half, single = (load_upscaler(trained, CPU, d) for d in (torch.bfloat16, torch.float32))
    assert half.size_bytes < 0.6 * single.size_bytes
    image = to_unit_range(Image.open(REPOSITORY / "docs/gallery.png").convert("RGB"))
    image = image[..., 100:300, 100:300]
    difference = whole(half, image) - whole(single, image)
    assert -10 * torch.log10(difference.square().mean()) > 50
