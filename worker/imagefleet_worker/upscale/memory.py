"""The largest tiles that fit in memory, and smaller ones to retry with when it runs out."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from imagefleet_worker.device.peak_memory import GPU_PEAK
from imagefleet_worker.upscale.tiles import Tiling

CPU_TILE_PX = 272
"""Largest tile on a CPU, where SwinIR-M x4 needs about 1 GB for it. No progress is reported within
a call, so a call of minutes counts as a stall. With the default overlap, 2 x 2 cover 512 x 512."""
_MAX_TILE_PX = 1040
_MIN_TILE_PX = 32
_MAX_BATCH = 16
_PROBE_PX = 64
USABLE_SHARE = 0.7
"""Share of the free memory that one call may use."""


def measure_bytes_per_pixel(network: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Measure the peak CUDA memory of a network per input pixel by running it once."""
    before = torch.cuda.memory_allocated(device)
    probe = torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=device)
    return (GPU_PEAK.measure(device, lambda: network(probe)) - before) / _PROBE_PX**2


def largest_tiling(pixels: float, tile_size: int | None, tile_overlap: int) -> Tiling:
    """The largest tiling whose calls have at most this many input pixels.

    Args:
        pixels: of one call; exceeded only by the smallest tile, 32 x 32.
        tile_size: the requested maximum; None: 1040.
        tile_overlap: as requested; reduced if the tile is too small for it.
    """
    side = max(_MIN_TILE_PX, int(math.sqrt(pixels)) // 8 * 8)
    side = min(_MAX_TILE_PX if tile_size is None else tile_size, side)
    batch = int(pixels / side**2)
    return Tiling(side, _clamp_overlap(tile_overlap, side), max(1, min(_MAX_BATCH, batch)))


def smaller_tiling(tiling: Tiling) -> Tiling | None:
    """The next tiling to try after running out of memory: half the batch, then half the tile.

    Returns:
        None after the smallest tile.
    """
    if tiling.batch > 1:
        return replace(tiling, batch=tiling.batch // 2)
    side = tiling.tile_size // 16 * 8
    if side < _MIN_TILE_PX:
        return None
    return Tiling(side, _clamp_overlap(tiling.tile_overlap, side))


def _clamp_overlap(tile_overlap: int, side: int) -> int:
    """The overlap, or a quarter of the tile if it is not less than half of the tile."""
    return tile_overlap if 2 * tile_overlap < side else side // 4


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error means that memory is exhausted, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return "DefaultCPUAllocator" in message or "not enough memory" in message


def release_cached_memory(device: torch.device) -> None:
    """Return unused memory of PyTorch's allocator to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
