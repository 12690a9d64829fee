"""Limits batch sizes: by setting, by the device's free memory, and after running out of memory."""

from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Protocol

USABLE_FRACTION = 0.9
"""Share of the free memory that a batch is planned for; the rest allows for fragmentation."""
GROWTH_FACTOR = 1.02
"""After running out of memory, a family's limit is halved. Each batch that fits and has at least
half of the limit raises it by this factor: it takes 35 batches to double, so that a size that did
not fit is rarely retried."""


class DeviceMemory(Protocol):
    """The memory in which batches run."""

    def free_bytes(self) -> int | None:
        """Memory available to a batch; None: unknown."""
        ...

    def begin_batch(self) -> None:
        """Start measuring a batch."""
        ...

    def peak_bytes(self) -> int | None:
        """Peak memory that the batch allocated and freed again; None: not fully known."""
        ...

    def ran_out(self, error: BaseException) -> bool:
        """Whether the error means that a batch needs more memory than there is."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether the device is unusable after the error."""
        ...

    def as_worker_error(self, error: BaseException) -> BaseException:
        """Out-of-memory errors as `OutOfMemory`, after freeing memory; other errors unchanged."""
        ...


class UnmeasuredMemory:
    """Memory that is not measured and never runs out."""

    def free_bytes(self) -> int | None:
        """Unknown."""
        return None

    def begin_batch(self) -> None:
        """Does nothing."""

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
    """Learns how many pixels a batch may have, for each family of checkpoints.

    Args:
        max_pixels: the upper bound for every family.
        memory: of the device.
    """

    def __init__(self, max_pixels: int, memory: DeviceMemory) -> None:
        self._max_pixels = max_pixels
        self._memory = memory
        self._bytes_per_pixel: dict[Hashable, float] = {}
        self._allowed: dict[Hashable, float] = {}

    def max_pixels(self, family: Hashable) -> int:
        """Limit of a batch of the family; a single job may have more."""
        limit = min(self._max_pixels, self._allowed.get(family, self._max_pixels))
        per_pixel, free = self._bytes_per_pixel.get(family), self._memory.free_bytes()
        if per_pixel and free is not None:
            limit = min(limit, USABLE_FRACTION * free / per_pixel)
        return int(limit)

    @contextmanager
    def measure(self, family: Hashable, pixels: int) -> Generator[None]:
        """Measure a batch of so many pixels, and update the family's limit."""
        self._memory.begin_batch()
        try:
            yield
        except BaseException as error:
            if self._memory.ran_out(error):
                self._allowed[family] = min(self._allowed.get(family, pixels), pixels / 2)
                self._bytes_per_pixel.pop(family, None)
            raise
        # Part of the peak does not depend on the batch's size: the largest batch gives the best
        # estimate of bytes per pixel, which is also the lowest.
        if (peak_bytes := self._memory.peak_bytes()) is not None:
            measured = peak_bytes / pixels
            known = self._bytes_per_pixel.get(family, measured)
            self._bytes_per_pixel[family] = min(known, measured)
        allowed = self._allowed.get(family)
        if allowed is not None and pixels >= allowed / 2:
            self._allowed[family] = min(allowed * GROWTH_FACTOR, self._max_pixels)
