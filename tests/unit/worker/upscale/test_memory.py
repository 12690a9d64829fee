"""Memory that ends, and memory that does not grow."""

import subprocess
import sys

import pytest
import torch
from spandrel import Architecture, ImageModelDescriptor, StateDict
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imagefleet_shared.errors import OutOfMemory
from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.memory import CPU_TILE_PX, fitting, ran_out, smaller
from imagefleet_worker.upscale.tiles import Tiling
from imagefleet_worker.upscale.upscaler import Upscaler

CPU = torch.device("cpu")
# No machine has it: the allocator refuses at once.
_TOO_MUCH = 2**60


class Greedy(nn.Module):
    """Doubles a picture, and needs more memory than there is for more than so many pixels."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = nn.Parameter(torch.tensor(most))
        self.calls: list[torch.Size] = []

    def forward(self, image: Tensor) -> Tensor:
        self.calls.append(image.shape)
        if image.shape[0] * image.shape[2] * image.shape[3] > self.most:
            torch.empty(_TOO_MUCH, dtype=torch.uint8)
        return interpolate(image, scale_factor=2, mode="nearest")


class GreedyArch(Architecture[Greedy]):
    def __init__(self) -> None:
        super().__init__(id="Greedy", detect=lambda weights: "most" in weights)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[Greedy]:
        return ImageModelDescriptor(
            Greedy(0.0),
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


def greedy(most: float) -> tuple[Greedy, Upscaler]:
    descriptor = GreedyArch().load(Greedy(most).state_dict())
    return descriptor.model, Upscaler("greedy", descriptor, torch.float32)


def ignore(done: int, total: int) -> None:
    pass


def test_tiles_halve_until_they_fit_and_the_picture_is_right() -> None:
    model, upscaler = greedy(64.0 * 64)
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


def test_the_least_tile_is_the_end() -> None:
    model, upscaler = greedy(31.0 * 31)
    with pytest.raises(OutOfMemory, match="greedy"):
        upscaler.upscale(
            torch.rand(1, 3, 150, 130), tile_size=None, tile_overlap=16, on_tile=ignore
        )
    assert max(model.calls[-1][2:]) == 32


def test_the_batch_is_given_up_before_the_tile() -> None:
    course = [Tiling(128, 32, batch=5)]
    while following := smaller(course[-1]):
        course.append(following)
    assert [(tiling.batch, tiling.tile_size, tiling.tile_overlap) for tiling in course] == [
        (5, 128, 32),
        (2, 128, 32),
        (1, 128, 32),
        (1, 64, 16),
        (1, 32, 8),
    ]


def test_other_faults_are_not_taken_for_it() -> None:
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("tile_size", "overlap"), [(None, 16), (None, 128), (2048, 128)])
def test_no_request_makes_a_cpu_run_a_larger_tile_than_its_own(
    tile_size: int | None, overlap: int
) -> None:
    """`tile_size=2048` or a large overlap made one call of minutes and gigabytes: the supervisor
    killed the worker for a stall, and the next two that took the job."""
    model, upscaler = greedy(float("inf"))
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
    assert fitting(pixels, tile_size, overlap) == expected


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
    # Not by getrusage: that begins with the parent's memory.
    return int(re.findall(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

def enlarge(height):
    image = torch.rand(1, 3, height, 512)
    upscaler.upscale(image, tile_size=256, tile_overlap=16, on_tile=lambda done, total: None)

enlarge(512)
before = peak()
enlarge(4096)
print(peak() - before)
"""


def test_memory_grows_by_the_picture_and_little_else(tmp_path: object) -> None:
    """Of 2048 x 16384 pixels: kept in float32 until the end they would be 400 MB more."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _GROWTH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    # Pillow takes 4 bytes a pixel; the input comes as float32.
    result, given = 4 * 2048 * (16384 - 2048), 12 * 512 * (4096 - 512)
    in_float32 = 12 * 2048 * 16384
    assert int(run.stdout) < result + given + in_float32 / 2
