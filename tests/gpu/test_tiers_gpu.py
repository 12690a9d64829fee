"""On a GPU: a pipeline's weights go to page-locked memory and come back with the same bits."""

# Torch's public name for emptying the host's cache is newer than the oldest torch we allow.
# pyright: reportPrivateUsage=false

import pytest
import torch
from torch import Tensor

from imagefleet_worker.device.transfer import move
from tests.weights import small_modules

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT RUN: moves need CUDA, there is none here"
)


def tensors() -> list[Tensor]:
    modules = small_modules("sdxl", torch.float16).values()
    return [
        tensor for module in modules for tensor in (*module.cuda().parameters(), *module.buffers())
    ]


def test_weights_leave_the_gpu_for_pinned_memory_and_come_back_bit_for_bit() -> None:
    moved = tensors()
    before = [tensor.detach().clone() for tensor in moved]
    strides = [tensor.stride() for tensor in moved]

    move(moved, torch.device("cpu"))
    assert all(tensor.is_pinned() for tensor in moved)
    assert all(torch.equal(t.cuda(), b) for t, b in zip(moved, before, strict=True))
    move(moved, torch.device("cuda"))

    assert all(tensor.is_cuda for tensor in moved)
    assert all(torch.equal(t, b) for t, b in zip(moved, before, strict=True))
    assert [tensor.stride() for tensor in moved] == strides


def test_page_locked_memory_is_little_more_than_the_weights_take() -> None:
    """Torch rounds each block up to a power of two: one for each weight took a third too much."""
    torch._C._host_emptyCache()
    before = host_bytes()
    moved = [torch.empty(3 * 2**20 + 7, device="cuda", dtype=torch.float16) for _ in range(130)]
    move(moved, torch.device("cpu"))
    weights = sum(tensor.nbytes for tensor in moved)
    assert weights <= host_bytes() - before <= 1.05 * weights

    del moved
    torch._C._host_emptyCache()
    assert host_bytes() == before


def host_bytes() -> int:
    return torch.cuda.host_memory_stats()["allocated_bytes.current"]


def test_memory_of_the_gpu_is_free_once_weights_have_left_it() -> None:
    moved = tensors()
    taken = torch.cuda.memory_allocated()
    move(moved, torch.device("cpu"))
    assert torch.cuda.memory_allocated() <= taken - sum(tensor.nbytes for tensor in moved)
