"""The device's memory as torch has it, and what torch says when something is wrong with it."""

import gc
import traceback

import torch

from imagefleet_shared.errors import OutOfMemory
from imagefleet_worker.device.errors import NoRoomForWeights
from imagefleet_worker.device.graph_memory import GRAPH_MEMORY
from imagefleet_worker.device.peak_memory import GPU_PEAK


class _TorchMemory:
    """What the CPU's and a GPU's memory have in common; see `engine.batch_limit.DeviceMemory`."""

    def ran_out(self, error: BaseException) -> bool:
        return isinstance(error, torch.OutOfMemoryError)

    def is_lost(self, error: BaseException) -> bool:
        # Nothing runs on a CUDA context after its first such error.
        return isinstance(error, torch.AcceleratorError)

    def as_worker_error(self, error: BaseException) -> BaseException:
        if isinstance(error, NoRoomForWeights):
            free_after(error)
            return OutOfMemory(str(error))
        if isinstance(error, torch.OutOfMemoryError):
            free_after(error)
            return OutOfMemory(
                "the device ran out of memory; ask for a smaller size or fewer images, or run the "
                "worker with IMAGEFLEET_PRESET=balanced or low_vram"
            )
        return error


class CpuMemory(_TorchMemory):
    """The host's memory, which is not measured: a CPU swaps before it runs out."""

    def free_bytes(self) -> int | None:
        """Not known."""
        return None

    def begin_batch(self) -> None:
        """Nothing to note."""

    def peak_bytes(self) -> int:
        """Not measured."""
        return 0


CPU_MEMORY = CpuMemory()


class CudaMemory(_TorchMemory):
    """A GPU's memory, as torch's allocator has it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """What nobody has, and what the allocator keeps unused for all but graphs."""
        free, _total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        unused = reserved - torch.cuda.memory_allocated(self._device)
        return free + unused - GRAPH_MEMORY.kept_bytes

    def begin_batch(self) -> None:
        """Forget the peak so far."""
        GRAPH_MEMORY.begin()
        GPU_PEAK.begin(self._device)

    def peak_bytes(self) -> int | None:
        """Without what the batch left behind: a checkpoint that it loaded, adapters."""
        if GRAPH_MEMORY.hidden:
            return None
        peak = GPU_PEAK.most_bytes(self._device)
        return peak - torch.cuda.memory_allocated(self._device)


def free_after(error: BaseException) -> None:
    """Give back the memory that is held by the frames that failed."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()
    torch.cuda.empty_cache()
