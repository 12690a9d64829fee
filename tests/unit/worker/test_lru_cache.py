"""The LRU cache: values are cached while they fit, and hits and misses are counted."""

import pytest

from imagefleet_worker.lru_cache import ByteLRUCache, CacheStats


class BytesLoader:
    """Loads bytes of a given size through a cache, and records what it loaded."""

    def __init__(self) -> None:
        self.cache: ByteLRUCache[tuple[str, int], bytes] = ByteLRUCache(len, budget_bytes=100)
        self.loaded: list[str] = []

    def get(self, name: str, size: int) -> bytes:
        def load() -> bytes:
            if name == "broken":
                raise ValueError(name)
            self.loaded.append(name)
            return bytes(size)

        return self.cache.get_or_load((name, size), load)


@pytest.fixture
def loader() -> BytesLoader:
    return BytesLoader()


def test_a_cached_value_is_not_loaded_again(loader: BytesLoader) -> None:
    assert loader.get("a", 40) is loader.get("a", 40)
    assert loader.loaded == ["a"]
    assert loader.cache.stats == CacheStats(hits=1, misses=1, entries=1, size_bytes=40)


def test_the_least_recently_used_value_is_evicted(loader: BytesLoader) -> None:
    for name in "abacab":
        loader.get(name, 40)
    assert loader.loaded == ["a", "b", "c", "b"]
    assert loader.cache.stats == CacheStats(hits=2, misses=4, entries=2, size_bytes=80)


def test_another_key_is_another_value(loader: BytesLoader) -> None:
    loader.get("a", 40)
    loader.get("a", 41)
    assert loader.loaded == ["a", "a"]


def test_a_value_larger_than_the_budget_is_returned_and_evicts_nothing(loader: BytesLoader) -> None:
    loader.get("a", 40)
    assert not loader.cache.fits(101)
    assert len(loader.get("huge", 101)) == 101
    assert loader.cache.stats == CacheStats(hits=0, misses=2, entries=1, size_bytes=40)


def test_a_value_that_cannot_be_loaded_is_not_cached(loader: BytesLoader) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            loader.get("broken", 1)
    assert loader.cache.stats == CacheStats(hits=0, misses=2, entries=0, size_bytes=0)


def test_a_cleared_cache_loads_again(loader: BytesLoader) -> None:
    loader.get("a", 40)
    loader.cache.clear()
    assert loader.cache.stats.size_bytes == 0
    loader.get("a", 40)
    assert loader.loaded == ["a", "a"]
