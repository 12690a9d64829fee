"""Moves a pipeline's weights between the device and host memory."""

# Torch's public function to empty the pinned-memory cache is newer than our oldest torch.
# pyright: reportPrivateUsage=false

import gc
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

# Torch rounds each pinned allocation up to a power of two, which for single weights wastes a third.
# Blocks of one size can also be reused for the next evicted pipeline: pinning pages takes longer
# than the copy.
_BLOCK_BYTES = 2**28
# Suits any dtype and fast copies.
_ALIGNMENT_BYTES = 512


def move(tensors: Iterable[Tensor], target: torch.device, *, pinned: bool = False) -> None:
    """Move tensors to newly allocated memory on the target, bit for bit.

    Either all are moved or none. The tensors stay the same objects, with the same strides. On the
    host they share a few blocks, pinned if they come from a GPU, so that they can return at the
    full speed of the bus.

    Args:
        tensors: to move.
        target: device to move to.
        pinned: use pinned host memory wherever they come from, which needs a GPU.

    Raises:
        torch.OutOfMemoryError, RuntimeError: out of memory; no tensor was moved.
    """
    moved = list(tensors)
    if target.type == "cpu":
        destinations = list(
            _allocate_in_blocks(moved, pinned or any(tensor.is_cuda for tensor in moved))
        )
    else:
        destinations = [torch.empty_like(tensor, device=target) for tensor in moved]
    for tensor, destination in zip(moved, destinations, strict=True):
        destination.copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in moved):
        # Copies from the GPU must finish before they are read or their source is freed.
        torch.cuda.synchronize()
    for tensor, destination in zip(moved, destinations, strict=True):
        tensor.data = destination


def release_cached_memory(device: torch.device) -> None:
    """Release unused device and pinned memory from torch's caches."""
    # Offload hooks form reference cycles with their models, which only the collector frees.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()


def _allocate_in_blocks(tensors: Sequence[Tensor], pinned: bool) -> Iterator[Tensor]:
    """Allocate host memory for each tensor, with its shape, strides and dtype."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for tensor in tensors]
    block, used, remaining = torch.empty(0, dtype=torch.uint8), 0, sum(sizes)
    for tensor, size in zip(tensors, sizes, strict=True):
        if used + size > len(block):
            block = torch.empty(
                max(size, min(remaining, _BLOCK_BYTES)), dtype=torch.uint8, pin_memory=pinned
            )
            used = 0
        strides = torch.empty_like(tensor, device="meta").stride()
        storage = block[used : used + tensor.nbytes].view(tensor.dtype)
        yield storage.as_strided(tensor.shape, strides, storage.storage_offset())
        used += size
        remaining -= size
