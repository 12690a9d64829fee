"""Parsed adapters in host memory, least recently used out first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counters since the cache was made, and what it holds now."""

    hits: int
    misses: int
    entries: int
    size_bytes: int


class AdapterCache(Generic[K, V]):
    """Loads adapters and keeps them while they fit a number of bytes; for one thread.

    Args:
        load: parses the adapter that a key names. A key must change when its file does:
            ``(path, mtime_ns, size)``.
        size_of: memory that a parsed adapter takes, in bytes.
        budget_bytes: for all that is kept; an adapter that alone is larger is handed out, not kept.
    """

    def __init__(
        self, load: Callable[[K], V], size_of: Callable[[V], int], budget_bytes: int
    ) -> None:
        self._load = load
        self._size_of = size_of
        self._budget_bytes = budget_bytes
        # Least recently used first.
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._size_bytes = 0
        self._hits = 0
        self._misses = 0

    @property
    def stats(self) -> CacheStats:
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            entries=len(self._kept),
            size_bytes=self._size_bytes,
        )

    def get(self, key: K) -> V:
        """The adapter of that key, loaded unless kept; raises what `load` raises."""
        if key in self._kept:
            self._hits += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        self._misses += 1
        adapter = self._load(key)
        size_bytes = self._size_of(adapter)
        if size_bytes > self._budget_bytes:
            return adapter
        while self._size_bytes + size_bytes > self._budget_bytes:
            _, evicted = self._kept.popitem(last=False)
            self._size_bytes -= self._size_of(evicted)
        self._kept[key] = adapter
        self._size_bytes += size_bytes
        return adapter
