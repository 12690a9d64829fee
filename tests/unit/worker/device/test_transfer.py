"""Weights moved to the host share a few blocks and keep their values and strides."""

import pytest
import torch
from torch import Tensor

from imagefleet_worker.device import transfer as transfer_module
from imagefleet_worker.device.transfer import move

CPU = torch.device("cpu")
KIB = 1024


def weights() -> list[Tensor]:
    """Weights of various shapes, strides and dtypes."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(5, 6, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        torch.randn(40, 30, generator=generator).half().T,
        torch.randn((), generator=generator),
        torch.arange(77)[None],
        torch.empty(0, 3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.nn.Parameter(torch.randn(3000, generator=generator)),
    ]


def blocks(tensors: list[Tensor]) -> dict[int, int]:
    """Size of each block of memory by address."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def test_weights_are_moved_bit_for_bit_with_their_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "_BLOCK_BYTES", 4 * KIB)
    moved, expected = weights(), weights()
    move(moved, CPU)
    for tensor, other in zip(moved, expected, strict=True):
        assert torch.equal(tensor, other)
        assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride())
    for tensor in moved:
        tensor.zero_() if not tensor.requires_grad else tensor.detach().zero_()
    assert not any(tensor.any() for tensor in moved), "no two overlap"


def test_blocks_have_one_size_and_the_last_is_as_large_as_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch rounds each pinned block up to a power of two, which wasted a third of the memory."""
    monkeypatch.setattr(transfer_module, "_BLOCK_BYTES", 64 * KIB)
    moved = [torch.ones(1500 * KIB // 1000 // 4) for _ in range(150)]
    large = torch.ones(20 * KIB)
    move([large, *moved], CPU)
    *full, last = blocks(moved).values()
    assert set(full) == {64 * KIB}
    assert last == 36 * KIB
    assert blocks([large]) == {large.data_ptr(): 80 * KIB}, "larger than a block, it has its own"
