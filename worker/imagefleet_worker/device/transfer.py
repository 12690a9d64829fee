"""A pipeline's weights moved between the device and host memory."""

# Torch's public name for emptying the host's cache is newer than the oldest torch we allow.
# pyright: reportPrivateUsage=false

import gc
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

# Torch rounds each page-locked block up to a power of two, which for single weights is a third too
# much. Blocks of one size also serve the next pipeline that leaves the device: locking pages takes
# longer than the copy.
_BLOCK_BYTES = 2**28
# Weights start where any dtype may, and where copies are fast.
_ALIGNMENT_BYTES = 512


def move(tensors: Iterable[Tensor], target: torch.device, *, pinned: bool = False) -> None:
    """Give each tensor memory on the target that no other pipeline has, with the same bits.

    All of them, or none. The tensors stay the same objects, with the same strides. On the host they
    share a few blocks, page-locked for what leaves a GPU: that way it comes back at the full speed
    of the bus.

    Args:
        tensors: to move.
        target: where to.
        pinned: page-locked on the host wherever they come from, which needs a GPU.

    Raises:
        torch.OutOfMemoryError, RuntimeError: there is no room; every tensor is where it was.
    """
    moved = list(tensors)
    if target.type == "cpu":
        places = list(_in_blocks(moved, pinned or any(tensor.is_cuda for tensor in moved)))
    else:
        places = [torch.empty_like(tensor, device=target) for tensor in moved]
    for tensor, place in zip(moved, places, strict=True):
        place.copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in moved):
        # The copies out of the GPU must have come before anybody reads them or their source goes.
        torch.cuda.synchronize()
    for tensor, place in zip(moved, places, strict=True):
        tensor.data = place


def give_back_unused(device: torch.device) -> None:
    """Give the device's and page-locked memory back that nobody uses and torch keeps."""
    # Offload hooks point back at their models: only the collector frees those.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()


def _in_blocks(tensors: Sequence[Tensor], pinned: bool) -> Iterator[Tensor]:
    """Room for each tensor in host memory, of its shape, strides and dtype."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for tensor in tensors]
    block, used, left = torch.empty(0, dtype=torch.uint8), 0, sum(sizes)
    for tensor, size in zip(tensors, sizes, strict=True):
        if used + size > len(block):
            block = torch.empty(
                max(size, min(left, _BLOCK_BYTES)), dtype=torch.uint8, pin_memory=pinned
            )
            used = 0
        strides = torch.empty_like(tensor, device="meta").stride()
        own = block[used : used + tensor.nbytes].view(tensor.dtype)
        yield own.as_strided(tensor.shape, strides, own.storage_offset())
        used += size
        left -= size
