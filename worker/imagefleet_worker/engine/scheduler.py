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

MAX_PASSED = 8
"""On traces of 20 adapter sets by Zipf's law this saves about nine tenths of the switches that no
bound would (tests/unit/worker/test_line.py). Counted in batches, not in seconds: by the clock an
overloaded worker would fall back to arrival order just when switches cost it most."""

Setup = tuple[Hashable, Hashable]
"""What is on the device: a checkpoint, and the adapters on it."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What of a job decides about its turn."""

    key: Hashable | None
    """Jobs of equal key may run together; None: alone."""
    pixels: int
    """Of all its pictures in its largest pass."""
    begins: Setup | None
    """What its first pass draws with; None: it draws with nothing, and leaves on what is on."""
    ends: Setup | None
    """What its last pass leaves on; None likewise."""
    family: Hashable
    """What takes about as much memory per pixel."""
    priority: int
    """0 goes first."""


@dataclass(eq=False)
class Place(Generic[T]):
    """A job in the line."""

    item: T
    traits: Traits
    passed: int = 0
    """Batches that ran before it though a later job led them."""


class Line(Generic[T]):
    """Jobs in the order in which they came; not safe to share between threads."""

    def __init__(self, max_passed: int = MAX_PASSED) -> None:
        self._max_passed = max_passed
        self._places: list[Place[T]] = []
        self._on: Setup | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: T) -> bool:
        return any(place.item is item for place in self._places)

    def join(self, item: T, traits: Traits) -> None:
        """Put a job at the end."""
        self._places.append(Place(item, traits))

    def take(self, cap: Callable[[Hashable], int]) -> list[Place[T]]:
        """The jobs to run next, out of the line; the first leads, the others fit with it.

        Args:
            cap: pixels that a batch of a family may have; one job alone may have more.
        """
        batch = self._batch(cap)
        for place in self._places[: self._places.index(batch[0])]:
            place.passed += place not in batch
        for place in batch:
            self._places.remove(place)
        self._on = batch[0].traits.ends or self._on
        return batch

    def leave(self, item: T) -> None:
        """Take a job out before its turn."""
        self._places = [place for place in self._places if place.item is not item]

    def full(self, cap: Callable[[Hashable], int]) -> bool:
        """Whether no job like the one to lead next would fit into its batch any more."""
        batch = self._batch(cap)
        leader = batch[0].traits
        pixels = sum(place.traits.pixels for place in batch)
        return leader.key is None or pixels + leader.pixels > cap(leader.family)

    def forget(self) -> None:
        """Take what is on the device for unknown: a batch did not come to its end."""
        self._on = None

    def _batch(self, cap: Callable[[Hashable], int]) -> list[Place[T]]:
        leader = self._leader()
        batch, pixels = [leader], leader.traits.pixels
        most = cap(leader.traits.family)
        for place in sorted(self._places, key=lambda place: place.traits.priority):
            alike = place.traits.key is not None and place.traits.key == leader.traits.key
            if alike and place is not leader and pixels + place.traits.pixels <= most:
                batch.append(place)
                pixels += place.traits.pixels
        return batch

    def _leader(self) -> Place[T]:
        for place in self._places:
            if place.passed >= self._max_passed:
                return place
        best = min(place.traits.priority for place in self._places)
        first = [place for place in self._places if place.traits.priority == best]
        begins = [place.traits.begins for place in first if place.traits.begins]
        nearest = min(map(self._distance, begins), default=0)
        # What draws with nothing costs no switch and saves none: it takes its turn by age.
        return next(
            place
            for place in first
            if place.traits.begins is None or self._distance(place.traits.begins) == nearest
        )

    def _distance(self, begins: Setup) -> int:
        """0: what is on now, or nothing is known; 1: other adapters; 2: another checkpoint."""
        if self._on is None or begins == self._on:
            return 0
        return 1 if begins[0] == self._on[0] else 2
