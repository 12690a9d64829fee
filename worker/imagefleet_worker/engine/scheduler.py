"""The line before the device: who is next, and who goes along.

A switch of adapters or checkpoint costs about as much as a picture, so jobs for what is on the
device now go first. How far is bounded: a job is passed over by at most `MAX_PASSED` batches that
a later job leads. Before it runs, then, at most so many batches do and one for each job that was
there before it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_PASSED_OVER = 8
"""On traces of 20 adapter sets by Zipf's law this saves about nine tenths of the switches that no
bound would (tests/unit/worker/test_line.py). Counted in batches, not in seconds: by the clock an
overloaded worker would fall back to arrival order just when switches cost it most."""

LoadedState = tuple[Hashable, Hashable]
"""What is on the device: a checkpoint, and the adapters on it."""


@dataclass(frozen=True, kw_only=True)
class SchedulingKey:
    """What of a job decides about its turn."""

    batch_key: Hashable | None
    """Jobs of equal key may run together; None: alone."""
    pixels: int
    """Of all its pictures in its largest pass."""
    first_state: LoadedState | None
    """What its first pass draws with; None: it draws with nothing, and leaves on what is on."""
    last_state: LoadedState | None
    """What its last pass leaves on; None likewise."""
    family: Hashable
    """What takes about as much memory per pixel."""
    priority: int
    """0 goes first."""


@dataclass(eq=False)
class QueueEntry(Generic[T]):
    """A job in the line."""

    item: T
    key: SchedulingKey
    passed_over: int = 0
    """Batches that ran before it though a later job led them."""


class BatchScheduler(Generic[T]):
    """Jobs in the order in which they came; not safe to share between threads."""

    def __init__(self, max_passed_over: int = MAX_PASSED_OVER) -> None:
        self._max_passed_over = max_passed_over
        self._entries: list[QueueEntry[T]] = []
        self._loaded: LoadedState | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: T) -> bool:
        return any(place.item is item for place in self._entries)

    def enqueue(self, item: T, key: SchedulingKey) -> None:
        """Put a job at the end."""
        self._entries.append(QueueEntry(item, key))

    def next_batch(self, max_pixels: Callable[[Hashable], int]) -> list[QueueEntry[T]]:
        """The jobs to run next, out of the line; the first leads, the others fit with it.

        Args:
            cap: pixels that a batch of a family may have; one job alone may have more.
        """
        batch = self._batch(max_pixels)
        for place in self._entries[: self._entries.index(batch[0])]:
            place.passed_over += place not in batch
        for place in batch:
            self._entries.remove(place)
        self._loaded = batch[0].key.last_state or self._loaded
        return batch

    def remove(self, item: T) -> None:
        """Take a job out before its turn."""
        self._entries = [place for place in self._entries if place.item is not item]

    def is_full(self, max_pixels: Callable[[Hashable], int]) -> bool:
        """Whether no job like the one to lead next would fit into its batch any more."""
        batch = self._batch(max_pixels)
        leader = batch[0].key
        pixels = sum(place.key.pixels for place in batch)
        return leader.batch_key is None or pixels + leader.pixels > max_pixels(leader.family)

    def invalidate(self) -> None:
        """Take what is on the device for unknown: a batch did not come to its end."""
        self._loaded = None

    def _batch(self, max_pixels: Callable[[Hashable], int]) -> list[QueueEntry[T]]:
        leader = self._leader()
        batch, pixels = [leader], leader.key.pixels
        most = max_pixels(leader.key.family)
        for place in sorted(self._entries, key=lambda place: place.key.priority):
            alike = place.key.batch_key is not None and place.key.batch_key == leader.key.batch_key
            if alike and place is not leader and pixels + place.key.pixels <= most:
                batch.append(place)
                pixels += place.key.pixels
        return batch

    def _leader(self) -> QueueEntry[T]:
        for place in self._entries:
            if place.passed_over >= self._max_passed_over:
                return place
        best = min(place.key.priority for place in self._entries)
        first = [place for place in self._entries if place.key.priority == best]
        begins = [place.key.first_state for place in first if place.key.first_state]
        nearest = min(map(self._switch_cost, begins), default=0)
        # What draws with nothing costs no switch and saves none: it takes its turn by age.
        return next(
            place
            for place in first
            if place.key.first_state is None or self._switch_cost(place.key.first_state) == nearest
        )

    def _switch_cost(self, state: LoadedState) -> int:
        """0: what is on now, or nothing is known; 1: other adapters; 2: another checkpoint."""
        if self._loaded is None or state == self._loaded:
            return 0
        return 1 if state[0] == self._loaded[0] else 2
