"""How large a batch may be: by setting, by the device's free memory, by what did not fit before."""

import gc
import traceback
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Protocol

import torch

from imagefleet_shared.errors import OutOfMemory
from imagefleet_worker.device.graph_memory import GRAPH_MEMORY
from imagefleet_worker.device.peak_memory import GPU_PEAK

USABLE = 0.9
"""Share of the free memory that a batch is planned for; blocks of other sizes keep the rest."""
GROWTH = 1.02
"""Out of memory, a family's batches are halved. Each that fits, and has at least half of what is
allowed, then allows so much more: twice as much after 35, so seldom is a size tried again."""


class NoRoomForWeights(torch.OutOfMemoryError):
    """The device has no room for a model, however small the batch."""


class DeviceMemory(Protocol):
    """The memory in which batches run."""

    def free_bytes(self) -> int | None:
        """What a batch may take; None: not known."""
        ...

    def begin(self) -> None:
        """A batch begins."""
        ...

    def peak_bytes(self) -> int | None:
        """The most that the batch took of what it has given back since; None: not all is known."""
        ...


class HostMemory:
    """Memory that is not counted: the CPU's, which swaps before it runs out."""

    def free_bytes(self) -> int | None:
        """Not known."""
        return None

    def begin(self) -> None:
        """Nothing to note."""

    def peak_bytes(self) -> int:
        """Not measured."""
        return 0


HOST_MEMORY = HostMemory()


class CudaMemory:
    """A GPU's memory, as torch's allocator has it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """What nobody has, and what the allocator keeps unused for all but graphs."""
        free, _total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        unused = reserved - torch.cuda.memory_allocated(self._device)
        return free + unused - GRAPH_MEMORY.kept_bytes

    def begin(self) -> None:
        """Forget the peak so far."""
        GRAPH_MEMORY.begin()
        GPU_PEAK.begin(self._device)

    def peak_bytes(self) -> int | None:
        """Without what the batch left behind: a checkpoint that it loaded, adapters."""
        if GRAPH_MEMORY.hidden:
            return None
        peak = GPU_PEAK.most_bytes(self._device)
        return peak - torch.cuda.memory_allocated(self._device)


class Room:
    """Knows how many pixels a batch of each family of checkpoints may have.

    Args:
        max_pixels: in any case.
        memory: of the device.
    """

    def __init__(self, max_pixels: int, memory: DeviceMemory) -> None:
        self._max_pixels = max_pixels
        self._memory = memory
        self._bytes_per_pixel: dict[Hashable, float] = {}
        self._allowed: dict[Hashable, float] = {}

    def pixels(self, family: Hashable) -> int:
        """The most that a batch of the family may have; one job alone may have more."""
        most = min(self._max_pixels, self._allowed.get(family, self._max_pixels))
        per_pixel, free = self._bytes_per_pixel.get(family), self._memory.free_bytes()
        if per_pixel and free is not None:
            most = min(most, USABLE * free / per_pixel)
        return int(most)

    @contextmanager
    def watched(self, family: Hashable, pixels: int) -> Generator[None]:
        """Run a batch of so many pixels, and learn from it."""
        self._memory.begin()
        try:
            yield
        except NoRoomForWeights:
            raise
        except torch.OutOfMemoryError:
            self._allowed[family] = min(self._allowed.get(family, pixels), pixels / 2)
            self._bytes_per_pixel.pop(family, None)
            raise
        # Part of the peak is there for the smallest batch too: the largest one tells best what a
        # pixel takes, and it gives the least.
        if (peak_bytes := self._memory.peak_bytes()) is not None:
            measured = peak_bytes / pixels
            known = self._bytes_per_pixel.get(family, measured)
            self._bytes_per_pixel[family] = min(known, measured)
        allowed = self._allowed.get(family)
        if allowed is not None and pixels >= allowed / 2:
            self._allowed[family] = min(allowed * GROWTH, self._max_pixels)


def free_after(error: torch.OutOfMemoryError) -> None:
    """Give back the memory that is held by the frames that failed."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()
    torch.cuda.empty_cache()


def translated(exc: BaseException) -> BaseException:
    """Running out of memory in our words, and the memory freed; any other error as it is."""
    if not isinstance(exc, torch.OutOfMemoryError):
        return exc
    free_after(exc)
    if isinstance(exc, NoRoomForWeights):
        return OutOfMemory(str(exc))
    return OutOfMemory(
        "the device ran out of memory; ask for a smaller size or fewer images, or run the worker "
        "with IMAGEFLEET_PRESET=balanced or low_vram"
    )
