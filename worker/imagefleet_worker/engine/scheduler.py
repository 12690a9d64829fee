"""Schedules queued jobs into batches.

A switch of adapters or checkpoint costs about as much as an image, so jobs for the loaded state go
first. This is bounded: a job is passed over by at most `MAX_PASSED_OVER` batches led by a later
job. At most that many batches, and one for each job queued before it, run before a job does.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_PASSED_OVER = 8
"""On traces of 20 adapter sets by Zipf's law this saves about nine tenths of the switches that no
bound would (tests/unit/worker/engine/test_scheduler.py). Counted in batches, not in seconds: by the
clock an overloaded worker would fall back to arrival order just when switches cost it most."""

LoadedState = tuple[Hashable, Hashable]
"""The checkpoint on the device and the adapters merged into it."""


@dataclass(frozen=True, kw_only=True)
class SchedulingKey:
    """The properties of a job by which it is scheduled."""

    batch_key: Hashable | None
    """Jobs of equal key may share a batch; None: the job runs alone."""
    pixels: int
    """Of all its images in its largest pass."""
    first_state: LoadedState | None
    """State that its first pass needs; None: any, the job uses no checkpoint."""
    last_state: LoadedState | None
    """State that its last pass leaves loaded; None: it changes nothing."""
    family: Hashable
    """Jobs of one family take about the same memory per pixel."""
    priority: int
    """0 goes first."""


@dataclass(eq=False)
class QueueEntry(Generic[T]):
    """A queued job."""

    item: T
    key: SchedulingKey
    passed_over: int = 0
    """Batches that ran before it although they were led by a later job."""


class BatchScheduler(Generic[T]):
    """Queued jobs in order of arrival; not thread-safe."""

    def __init__(self, max_passed_over: int = MAX_PASSED_OVER) -> None:
        self._max_passed_over = max_passed_over
        self._entries: list[QueueEntry[T]] = []
        self._loaded: LoadedState | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: T) -> bool:
        return any(entry.item is item for entry in self._entries)

    def enqueue(self, item: T, key: SchedulingKey) -> None:
        """Append a job to the queue."""
        self._entries.append(QueueEntry(item, key))

    def next_batch(self, max_pixels: Callable[[Hashable], int]) -> list[QueueEntry[T]]:
        """Dequeue the jobs to run next; the first leads the batch, the others share its key.

        Args:
            max_pixels: limit of a batch by its family; a single job may have more.
        """
        batch = self._batch(max_pixels)
        for entry in self._entries[: self._entries.index(batch[0])]:
            entry.passed_over += entry not in batch
        for entry in batch:
            self._entries.remove(entry)
        self._loaded = batch[0].key.last_state or self._loaded
        return batch

    def remove(self, item: T) -> None:
        """Remove a job from the queue."""
        self._entries = [entry for entry in self._entries if entry.item is not item]

    def is_full(self, max_pixels: Callable[[Hashable], int]) -> bool:
        """Whether the next batch has no room for one more job like its leader."""
        batch = self._batch(max_pixels)
        leader = batch[0].key
        pixels = sum(entry.key.pixels for entry in batch)
        return leader.batch_key is None or pixels + leader.pixels > max_pixels(leader.family)

    def invalidate(self) -> None:
        """Forget the loaded state: a batch was interrupted."""
        self._loaded = None

    def _batch(self, max_pixels: Callable[[Hashable], int]) -> list[QueueEntry[T]]:
        leader = self._leader()
        batch, pixels = [leader], leader.key.pixels
        limit = max_pixels(leader.key.family)
        for entry in sorted(self._entries, key=lambda entry: entry.key.priority):
            alike = entry.key.batch_key is not None and entry.key.batch_key == leader.key.batch_key
            if alike and entry is not leader and pixels + entry.key.pixels <= limit:
                batch.append(entry)
                pixels += entry.key.pixels
        return batch

    def _leader(self) -> QueueEntry[T]:
        for entry in self._entries:
            if entry.passed_over >= self._max_passed_over:
                return entry
        highest = min(entry.key.priority for entry in self._entries)
        candidates = [entry for entry in self._entries if entry.key.priority == highest]
        states = [entry.key.first_state for entry in candidates if entry.key.first_state]
        lowest_cost = min(map(self._switch_cost, states), default=0)
        # A job without a state costs no switch and saves none: it is scheduled by age.
        return next(
            entry
            for entry in candidates
            if entry.key.first_state is None
            or self._switch_cost(entry.key.first_state) == lowest_cost
        )

    def _switch_cost(self, state: LoadedState) -> int:
        """0: the loaded state, or it is unknown; 1: other adapters; 2: another checkpoint."""
        if self._loaded is None or state == self._loaded:
            return 0
        return 1 if state[0] == self._loaded[0] else 2
