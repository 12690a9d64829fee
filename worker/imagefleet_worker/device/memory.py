"""Measures the device's memory with torch, and classifies torch's errors."""

import gc
import traceback

import torch

from imagefleet_shared.errors import OutOfMemory
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.device.graph_memory import GRAPH_MEMORY
from imagefleet_worker.device.peak_memory import GPU_PEAK


class _TorchMemory:
    """Common base of CPU and GPU memory; implements `engine.batch_limit.DeviceMemory`."""

    def ran_out(self, error: BaseException) -> bool:
        return isinstance(error, torch.OutOfMemoryError)

    def is_lost(self, error: BaseException) -> bool:
        # A CUDA context is unusable after such an error.
        return isinstance(error, torch.AcceleratorError)

    def as_worker_error(self, error: BaseException) -> BaseException:
        if isinstance(error, ModelDoesNotFit):
            free_failed_frames(error)
            return OutOfMemory(str(error))
        if isinstance(error, torch.OutOfMemoryError):
            free_failed_frames(error)
            return OutOfMemory(
                "the device ran out of memory; ask for a smaller size or fewer images, or run the "
                "worker with IMAGEFLEET_PRESET=balanced or low_vram"
            )
        return error


class CpuMemory(_TorchMemory):
    """Host memory, which is not measured: the CPU swaps before it runs out."""

    def free_bytes(self) -> int | None:
        """Unknown."""
        return None

    def begin_batch(self) -> None:
        """Do nothing."""

    def peak_bytes(self) -> int:
        """Zero: not measured."""
        return 0


CPU_MEMORY = CpuMemory()


class CudaMemory(_TorchMemory):
    """GPU memory, measured by torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """Free memory, and memory cached by the allocator, except that of CUDA graphs."""
        free, _total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        unused = reserved - torch.cuda.memory_allocated(self._device)
        return free + unused - GRAPH_MEMORY.pool_bytes

    def begin_batch(self) -> None:
        """Reset the peak."""
        GRAPH_MEMORY.begin_batch()
        GPU_PEAK.begin(self._device)

    def peak_bytes(self) -> int | None:
        """Peak of the batch, without what stays allocated: loaded checkpoints, adapters.

        None if graphs of earlier batches were replayed, whose memory the peak does not show.
        """
        if GRAPH_MEMORY.replayed_earlier_graph:
            return None
        peak = GPU_PEAK.peak_bytes(self._device)
        return peak - torch.cuda.memory_allocated(self._device)


def free_failed_frames(error: BaseException) -> None:
    """Free memory that is still referenced by the frames of a failed call."""
    current: BaseException | None = error
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
    gc.collect()
    torch.cuda.empty_cache()
