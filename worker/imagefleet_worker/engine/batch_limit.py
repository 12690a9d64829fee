"""How large a batch may be: by setting, by the device's free memory, by what did not fit before."""

from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Protocol

USABLE = 0.9
"""Share of the free memory that a batch is planned for; blocks of other sizes keep the rest."""
GROWTH = 1.02
"""Out of memory, a family's batches are halved. Each that fits, and has at least half of what is
allowed, then allows so much more: twice as much after 35, so seldom is a size tried again."""


class DeviceMemory(Protocol):
    """The memory in which batches run."""

    def free_bytes(self) -> int | None:
        """What a batch may take; None: not known."""
        ...

    def begin_batch(self) -> None:
        """A batch begins."""
        ...

    def peak_bytes(self) -> int | None:
        """The most that the batch took of what it has given back since; None: not all is known."""
        ...

    def ran_out(self, error: BaseException) -> bool:
        """Whether the error says that a batch needs more memory than there is."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether nothing runs on the device after the error."""
        ...

    def as_worker_error(self, error: BaseException) -> BaseException:
        """Running out of memory as `OutOfMemory`, once it is freed; any other error as it is."""
        ...


class UnmeasuredMemory:
    """Memory that is neither measured nor known to run out."""

    def free_bytes(self) -> int | None:
        """Not known."""
        return None

    def begin_batch(self) -> None:
        """Nothing to note."""

    def peak_bytes(self) -> int | None:
        """Not measured."""
        return 0

    def ran_out(self, error: BaseException) -> bool:
        """Never."""
        return False

    def is_lost(self, error: BaseException) -> bool:
        """Never."""
        return False

    def as_worker_error(self, error: BaseException) -> BaseException:
        """The error itself."""
        return error


UNMEASURED_MEMORY = UnmeasuredMemory()


class BatchSizeLimiter:
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

    def max_pixels(self, family: Hashable) -> int:
        """The most that a batch of the family may have; one job alone may have more."""
        most = min(self._max_pixels, self._allowed.get(family, self._max_pixels))
        per_pixel, free = self._bytes_per_pixel.get(family), self._memory.free_bytes()
        if per_pixel and free is not None:
            most = min(most, USABLE * free / per_pixel)
        return int(most)

    @contextmanager
    def measure(self, family: Hashable, pixels: int) -> Generator[None]:
        """Run a batch of so many pixels, and learn from it."""
        self._memory.begin_batch()
        try:
            yield
        except BaseException as error:
            if self._memory.ran_out(error):
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
