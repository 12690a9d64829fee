"""Running out of memory while upscaling, and bounded memory growth."""

import subprocess
import sys

import pytest
import torch
from spandrel import Architecture, ImageModelDescriptor, StateDict
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imagefleet_shared.errors import OutOfMemory
from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.memory import (
    CPU_TILE_PX,
    is_out_of_memory,
    largest_tiling,
    smaller_tiling,
)
from imagefleet_worker.upscale.tiles import Tiling
from imagefleet_worker.upscale.upscaler import Upscaler

CPU = torch.device("cpu")
# More than any machine has: the allocator refuses at once.
_TOO_MUCH = 2**60


class MemoryHungry(nn.Module):
    """Doubles a picture; runs out of memory above `max_pixels` input pixels."""

    def __init__(self, max_pixels: float) -> None:
        super().__init__()
        self.max_pixels = nn.Parameter(torch.tensor(max_pixels))
        self.calls: list[torch.Size] = []

    def forward(self, image: Tensor) -> Tensor:
        self.calls.append(image.shape)
        if image.shape[0] * image.shape[2] * image.shape[3] > self.max_pixels:
            torch.empty(_TOO_MUCH, dtype=torch.uint8)
        return interpolate(image, scale_factor=2, mode="nearest")


class MemoryHungryArchitecture(Architecture[MemoryHungry]):
    def __init__(self) -> None:
        super().__init__(id="MemoryHungry", detect=lambda weights: "max_pixels" in weights)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[MemoryHungry]:
        return ImageModelDescriptor(
            MemoryHungry(0.0),
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


def memory_hungry(max_pixels: float) -> tuple[MemoryHungry, Upscaler]:
    descriptor = MemoryHungryArchitecture().load(MemoryHungry(max_pixels).state_dict())
    return descriptor.model, Upscaler("memory-hungry", descriptor, torch.float32)


def ignore(done: int, total: int) -> None:
    pass


def test_tiles_are_halved_until_they_fit_and_the_result_is_correct() -> None:
    model, upscaler = memory_hungry(64.0 * 64)
    image = (torch.rand(1, 3, 150, 130) * 255).round() / 255
    calls: list[tuple[int, int]] = []

    def on_tile(done: int, total: int) -> None:
        calls.append((done, total))

    result = upscaler.upscale(image, tile_size=256, tile_overlap=16, on_tile=on_tile)
    assert torch.equal(to_unit_range(result), interpolate(image, scale_factor=2, mode="nearest"))
    sides = [max(shape[2:]) for shape in model.calls]
    assert sides[0] == 150
    assert max(sides[2:]) <= 64
    assert calls[-1][0] == calls[-1][1]


def test_out_of_memory_at_the_smallest_tile_is_an_error() -> None:
    model, upscaler = memory_hungry(31.0 * 31)
    with pytest.raises(OutOfMemory, match="memory-hungry"):
        upscaler.upscale(
            torch.rand(1, 3, 150, 130), tile_size=None, tile_overlap=16, on_tile=ignore
        )
    assert max(model.calls[-1][2:]) == 32


def test_the_batch_is_halved_before_the_tile() -> None:
    tilings = [Tiling(128, 32, batch=5)]
    while next_tiling := smaller_tiling(tilings[-1]):
        tilings.append(next_tiling)
    assert [(tiling.batch, tiling.tile_size, tiling.tile_overlap) for tiling in tilings] == [
        (5, 128, 32),
        (2, 128, 32),
        (1, 128, 32),
        (1, 64, 16),
        (1, 32, 8),
    ]


def test_only_memory_errors_are_recognised_as_such() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("tile_size", "overlap"), [(None, 16), (None, 128), (2048, 128)])
def test_no_request_exceeds_the_largest_tile_of_a_cpu(tile_size: int | None, overlap: int) -> None:
    """`tile_size=2048` or a large overlap once made calls of minutes and gigabytes: the supervisor
    killed the worker for a stall, and then two more that took the job."""
    model, upscaler = memory_hungry(float("inf"))
    image = torch.rand(1, 3, 300, 2000)
    upscaler.upscale(image, tile_size=tile_size, tile_overlap=overlap, on_tile=ignore)
    assert all(shape[0] == 1 for shape in model.calls)
    assert max(max(shape[2:]) for shape in model.calls) <= CPU_TILE_PX


@pytest.mark.parametrize(
    ("pixels", "tile_size", "overlap", "expected"),
    [
        (300 * 300, None, 16, Tiling(296, 16, 1)),
        (10**9, None, 16, Tiling(1040, 16, 16)),
        (1, None, 16, Tiling(32, 8, 1)),
        (1, None, 0, Tiling(32, 0, 1)),
        (1, 16, 4, Tiling(16, 4, 1)),
        (96 * 96, 192, 16, Tiling(96, 16, 1)),
        (96 * 96, 512, 128, Tiling(96, 24, 1)),
        (5 * 64 * 64, 64, 16, Tiling(64, 16, 5)),
    ],
)
def test_tiles_are_as_large_as_memory_allows(
    pixels: int, tile_size: int | None, overlap: int, expected: Tiling
) -> None:
    assert largest_tiling(pixels, tile_size, overlap) == expected


_GROWTH = """
import re, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from imagefleet_worker.upscale.load import load_upscaler
from tests.architectures import random_weights

path = Path(sys.argv[1]) / "compact.safetensors"
save_file(random_weights("compact"), path)
upscaler = load_upscaler(path, torch.device("cpu"), torch.float32)

def peak():
    # Not getrusage, which starts from the parent's memory.
    return int(re.findall(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

def enlarge(height):
    image = torch.rand(1, 3, height, 512)
    upscaler.upscale(image, tile_size=256, tile_overlap=16, on_tile=lambda done, total: None)

enlarge(512)
before = peak()
enlarge(4096)
print(peak() - before)
"""


def test_memory_grows_by_little_more_than_the_pictures(tmp_path: object) -> None:
    """The result has 2048 x 16384 pixels: all of it in float32 would take 400 MB more."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _GROWTH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    # Pillow takes 4 bytes per pixel; the input is float32.
    result, source = 4 * 2048 * (16384 - 2048), 12 * 512 * (4096 - 512)
    in_float32 = 12 * 2048 * 16384
    assert int(run.stdout) < result + source + in_float32 / 2
