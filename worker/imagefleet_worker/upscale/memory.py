"""How large tiles may be, and what to do when memory ends all the same."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from imagefleet_worker.device.peak_memory import GPU_PEAK
from imagefleet_worker.upscale.tiles import Tiling

CPU_TILE_PX = 272
"""Largest tile on a CPU, where SwinIR-M x4 needs about 1 GB for it: no step is told within a call,
and one of minutes is taken for a stall. With the default overlap, 2 x 2 cover 512 x 512."""
_MAX_TILE_PX = 1040
_MIN_TILE_PX = 32
_MAX_BATCH = 16
_PROBE_PX = 64
USABLE_SHARE = 0.7
"""Of the memory that is free, for one call."""


def bytes_per_pixel(network: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """What a network takes on a CUDA device at its peak, for each input pixel; tries it."""
    before = torch.cuda.memory_allocated(device)
    probe = torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=device)
    return (GPU_PEAK.within(device, lambda: network(probe)) - before) / _PROBE_PX**2


def fitting(pixels: float, tile_size: int | None, tile_overlap: int) -> Tiling:
    """The tiling of which a call has at most so many input pixels.

    Args:
        pixels: of one call; more only where the least tile, of 32 x 32, has more.
        tile_size: the largest, as asked for; None: 1040.
        tile_overlap: as asked for; it shrinks where the tile is too small for it.
    """
    side = max(_MIN_TILE_PX, int(math.sqrt(pixels)) // 8 * 8)
    side = min(_MAX_TILE_PX if tile_size is None else tile_size, side)
    batch = int(pixels / side**2)
    return Tiling(side, _within(tile_overlap, side), max(1, min(_MAX_BATCH, batch)))


def smaller(tiling: Tiling) -> Tiling | None:
    """The next tiling to try when one was too much: half the batch, then half the tile.

    None: the least tile was tried.
    """
    if tiling.batch > 1:
        return replace(tiling, batch=tiling.batch // 2)
    side = tiling.tile_size // 16 * 8
    if side < _MIN_TILE_PX:
        return None
    return Tiling(side, _within(tiling.tile_overlap, side))


def _within(tile_overlap: int, side: int) -> int:
    """The overlap as long as it is less than half of the tile, else a quarter of that."""
    return tile_overlap if 2 * tile_overlap < side else side // 4


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
