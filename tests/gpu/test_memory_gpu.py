"""What a GPU's memory tells of a batch."""

import pytest
import torch

from imagefleet_worker.device.memory import CudaMemory
from imagefleet_worker.upscale.memory import measure_bytes_per_pixel

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="NOT RUN: memory of a GPU needs CUDA, there is none here",
    ),
    pytest.mark.whole_card,
]

MIB = 2**20


def test_a_peak_counts_what_was_given_back_and_not_what_stays() -> None:
    memory = CudaMemory(torch.device("cuda"))
    memory.begin_batch()
    weights = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    passing = torch.empty(32 * MIB, dtype=torch.uint8, device="cuda")
    del passing
    assert memory.peak_bytes() == 32 * MIB
    memory.begin_batch()
    assert memory.peak_bytes() == 0
    del weights


def test_an_upscaler_that_is_tried_within_a_batch_hides_nothing_of_its_peak() -> None:
    """The trial began the count anew: later batches were planned by what came after it."""
    device = torch.device("cuda")
    memory = CudaMemory(device)
    memory.begin_batch()
    passing = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    del passing
    assert measure_bytes_per_pixel(lambda tile: tile * 2, device) < 100
    assert (memory.peak_bytes() or 0) >= 256 * MIB


def test_what_the_allocator_keeps_unused_is_free() -> None:
    memory = CudaMemory(torch.device("cuda"))
    tensor = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    taken = memory.free_bytes()
    del tensor
    assert memory.free_bytes() - taken >= 256 * MIB
