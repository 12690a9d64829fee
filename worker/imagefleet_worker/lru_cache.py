"""A cache bounded by bytes that evicts the least recently used values first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Hits and misses since the start, and what is cached now."""

    hits: int
    misses: int
    entries: int
    size_bytes: int


class ByteLRUCache(Generic[K, V]):
    """An LRU cache with a byte budget; not thread-safe.

    Args:
        size_of: memory that a value takes, in bytes.
        budget_bytes: for all cached values together; a larger value is not cached.
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
        """The value of a key; None if it is not cached."""
        if key not in self._values:
            self._misses += 1
            return None
        self._hits += 1
        self._values.move_to_end(key)
        return self._values[key]

    def get_or_load(self, key: K, load: Callable[[], V]) -> V:
        """The value of a key, loaded if it is not cached; raises what `load` raises."""
        cached = self.get(key)
        if cached is not None:
            return cached
        value = load()
        self.put(key, value)
        return value

    def fits(self, size_bytes: int) -> bool:
        """Whether a value of that size can be cached."""
        return size_bytes <= self._budget_bytes

    def put(self, key: K, value: V) -> None:
        """Cache the value of a new key, if it fits, and evict others to make room."""
        size_bytes = self._size_of(value)
        if not self.fits(size_bytes):
            return
        while self._size_bytes + size_bytes > self._budget_bytes:
            _, evicted = self._values.popitem(last=False)
            self._size_bytes -= self._size_of(evicted)
        self._values[key] = value
        self._size_bytes += size_bytes

    def clear(self) -> None:
        """Evict everything."""
        self._values.clear()
        self._size_bytes = 0
