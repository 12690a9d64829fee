"""Values kept while they fit a number of bytes, the one used longest ago out first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counters since the beginning, and what is kept now."""

    hits: int
    misses: int
    entries: int
    size_bytes: int


class ByteLRUCache(Generic[K, V]):
    """A cache by bytes; for one thread.

    Args:
        size_of: memory that a value takes, in bytes.
        budget_bytes: for all that is kept; a value that alone is larger is not.
    """

    def __init__(self, size_of: Callable[[V], int], budget_bytes: int) -> None:
        self._size_of = size_of
        self._budget_bytes = budget_bytes
        # Least recently used first.
        self._values: OrderedDict[K, V] = OrderedDict()
        self._size_bytes = 0
        self._hits = 0
        self._misses = 0

    @property
    def stats(self) -> CacheStats:
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            entries=len(self._values),
            size_bytes=self._size_bytes,
        )

    def get(self, key: K) -> V | None:
        """The value of that key; None where it is not kept."""
        if key not in self._values:
            self._misses += 1
            return None
        self._hits += 1
        self._values.move_to_end(key)
        return self._values[key]

    def get_or_load(self, key: K, load: Callable[[], V]) -> V:
        """The value of that key, made unless kept; raises what `make` raises."""
        found = self.get(key)
        if found is not None:
            return found
        value = load()
        self.put(key, value)
        return value

    def fits(self, size_bytes: int) -> bool:
        """Whether a value of that size would be kept."""
        return size_bytes <= self._budget_bytes

    def put(self, key: K, value: V) -> None:
        """Keep a value of a key that is not kept, if it fits; others make room."""
        size_bytes = self._size_of(value)
        if not self.fits(size_bytes):
            return
        while self._size_bytes + size_bytes > self._budget_bytes:
            _, evicted = self._values.popitem(last=False)
            self._size_bytes -= self._size_of(evicted)
        self._values[key] = value
        self._size_bytes += size_bytes

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
        self._size_bytes = 0
