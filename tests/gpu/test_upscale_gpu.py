"""On a GPU: upscalers give what they give on the CPU, and outlive the end of its memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.load import load_upscaler
from imagefleet_worker.upscale.upscaler import Upscaler
from tests.architectures import ARCHITECTURES, random_weights

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="NOT RUN: upscaling on a GPU needs CUDA, there is none here",
    ),
    # spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]

SWINIRS = [name for name, (module, *_) in ARCHITECTURES.items() if module.endswith(".SwinIR")]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """PyTorch may have half a gigabyte of the GPU."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 0.5e9 / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def loaded(folder: Path, name: str, device: str, dtype: torch.dtype) -> Upscaler:
    path = folder / f"{name}.safetensors"
    save_file(random_weights(name), path)
    return load_upscaler(path, torch.device(device), dtype)


def enlarged(upscaler: Upscaler, image: Tensor, tile_size: int | None = None) -> Tensor:
    return to_unit_range(
        upscaler.upscale(
            image, tile_size=tile_size, tile_overlap=16, on_tile=lambda done, total: None
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", SWINIRS)
def test_swinir_is_that_of_the_cpu(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    image = torch.rand(1, 3, 100, 90)
    expected = enlarged(loaded(tmp_path, name, "cpu", torch.float32), image)
    given = enlarged(loaded(tmp_path, name, "cuda", dtype), image)
    assert (given - expected).abs().max() <= (0.021 if dtype == torch.float16 else 0.005)


def test_many_small_tiles_go_in_batches(tmp_path: Path) -> None:
    upscaler = loaded(tmp_path, "swinir-lightweight", "cuda", torch.float32)
    calls: list[int] = []
    image = torch.rand(1, 3, 64, 640)
    upscaler.upscale(
        image, tile_size=64, tile_overlap=16, on_tile=lambda done, total: calls.append(done)
    )
    assert len(calls) < calls[-1]


@pytest.mark.whole_card
def test_tiles_shrink_with_free_memory_and_the_picture_is_done(
    tmp_path: Path, little_memory: None
) -> None:
    """The driver tells of memory that the process may not have: the first tiles are too large."""
    upscaler = loaded(tmp_path, "esrgan", "cuda", torch.float32)
    image = torch.rand(1, 3, 1500, 1500)
    given = enlarged(upscaler, image)
    assert given.shape == (1, 3, 6000, 6000)
