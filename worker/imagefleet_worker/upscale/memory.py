"""How large tiles may be, and what to do when memory ends all the same."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .tiles import Tiling

CPU_TILE_PX = 272
"""Largest tile by default on a CPU, where SwinIR-M x4 needs about 1 GB for it. With the default
overlap, 2 x 2 such tiles cover 512 x 512."""
_MAX_TILE_PX = 1040
_MIN_TILE_PX = 32
_MAX_BATCH = 16
_PROBE_PX = 64
SHARE = 0.7
"""Of the memory that is free, for one call."""


def bytes_per_pixel(network: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """What a network takes on a CUDA device at its peak, for each input pixel; tries it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    network(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=device))
    return (torch.cuda.max_memory_allocated(device) - before) / _PROBE_PX**2


def fitting(pixels: float, tile_size: int | None, tile_overlap: int) -> Tiling:
    """The tiling of which a call has at most so many input pixels.

    Args:
        pixels: of one call; more where the least tile, or a given one, has more.
        tile_size: as asked for; None: as large as fits, up to 1040.
        tile_overlap: as asked for.
    """
    if tile_size is None:
        side = int(math.sqrt(pixels)) // 8 * 8
        least = max(_MIN_TILE_PX, 2 * tile_overlap // 8 * 8 + 8)
        tile_size = max(least, min(_MAX_TILE_PX, side))
    batch = int(pixels / tile_size**2)
    return Tiling(tile_size, tile_overlap, max(1, min(_MAX_BATCH, batch)))


def smaller(tiling: Tiling) -> Tiling | None:
    """The next tiling to try when one was too much: half the batch, then half the tile.

    The overlap stays as long as it is less than half of the tile, then it shrinks too. None: the
    least tile was tried.
    """
    if tiling.batch > 1:
        return replace(tiling, batch=tiling.batch // 2)
    side = tiling.tile_size // 16 * 8
    if side < _MIN_TILE_PX:
        return None
    return Tiling(side, min(tiling.tile_overlap, side // 4))


def ran_out(error: RuntimeError) -> bool:
    """Whether it says that memory is exhausted, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error)
    return "DefaultCPUAllocator" in words or "not enough memory" in words


def release(device: torch.device) -> None:
    """Give memory back that only PyTorch's allocator still holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
