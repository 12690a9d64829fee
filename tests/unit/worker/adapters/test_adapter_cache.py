"""Parsed adapters are kept while they fit, and counted."""

import pytest

from imagefleet_worker.adapters.cache import AdapterCache, CacheStats

_Key = tuple[str, int]


class _Files:
    """A folder of adapters whose parsed size is part of their key; counts what it loads."""

    def __init__(self) -> None:
        self.loaded: list[_Key] = []

    def load(self, key: _Key) -> bytes:
        if key[0] == "broken":
            raise ValueError(key)
        self.loaded.append(key)
        return bytes(key[1])


@pytest.fixture
def files() -> _Files:
    return _Files()


@pytest.fixture
def cache(files: _Files) -> AdapterCache[_Key, bytes]:
    return AdapterCache(files.load, len, budget_bytes=100)


def test_what_is_kept_is_not_loaded_again(files: _Files, cache: AdapterCache[_Key, bytes]) -> None:
    assert cache.get(("a", 40)) is cache.get(("a", 40))

    assert files.loaded == [("a", 40)]
    assert cache.stats == CacheStats(hits=1, misses=1, entries=1, size_bytes=40)


def test_the_least_recently_used_makes_room(
    files: _Files, cache: AdapterCache[_Key, bytes]
) -> None:
    for key in (("a", 40), ("b", 40), ("a", 40), ("c", 40), ("a", 40), ("b", 40)):
        cache.get(key)

    assert files.loaded == [("a", 40), ("b", 40), ("c", 40), ("b", 40)]
    assert cache.stats == CacheStats(hits=2, misses=4, entries=2, size_bytes=80)


def test_a_replaced_file_has_another_key_and_is_loaded(
    files: _Files, cache: AdapterCache[_Key, bytes]
) -> None:
    cache.get(("a", 40))
    cache.get(("a", 41))

    assert files.loaded == [("a", 40), ("a", 41)]


def test_one_larger_than_the_budget_is_handed_out_and_drives_nobody_out(
    cache: AdapterCache[_Key, bytes],
) -> None:
    cache.get(("a", 40))

    assert len(cache.get(("huge", 101))) == 101

    assert cache.stats == CacheStats(hits=0, misses=2, entries=1, size_bytes=40)


def test_one_that_does_not_load_is_not_kept(cache: AdapterCache[_Key, bytes]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            cache.get(("broken", 1))

    assert cache.stats == CacheStats(hits=0, misses=2, entries=0, size_bytes=0)
