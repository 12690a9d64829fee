"""Values are kept while they fit, and counted."""

import pytest

from imagefleet_worker.lru_cache import ByteLRUCache, CacheStats


class Larder:
    """Makes bytes, whose number is part of their key; counts what it makes."""

    def __init__(self) -> None:
        self.kept: ByteLRUCache[tuple[str, int], bytes] = ByteLRUCache(len, budget_bytes=100)
        self.made: list[str] = []

    def get(self, name: str, size: int) -> bytes:
        def make() -> bytes:
            if name == "broken":
                raise ValueError(name)
            self.made.append(name)
            return bytes(size)

        return self.kept.get_or_load((name, size), make)


@pytest.fixture
def larder() -> Larder:
    return Larder()


def test_what_is_kept_is_not_made_again(larder: Larder) -> None:
    assert larder.get("a", 40) is larder.get("a", 40)
    assert larder.made == ["a"]
    assert larder.kept.stats == CacheStats(hits=1, misses=1, entries=1, size_bytes=40)


def test_the_least_recently_used_makes_room(larder: Larder) -> None:
    for name in "abacab":
        larder.get(name, 40)
    assert larder.made == ["a", "b", "c", "b"]
    assert larder.kept.stats == CacheStats(hits=2, misses=4, entries=2, size_bytes=80)


def test_another_key_is_another_value(larder: Larder) -> None:
    larder.get("a", 40)
    larder.get("a", 41)
    assert larder.made == ["a", "a"]


def test_one_larger_than_the_budget_is_handed_out_and_drives_nobody_out(larder: Larder) -> None:
    larder.get("a", 40)
    assert not larder.kept.fits(101)
    assert len(larder.get("huge", 101)) == 101
    assert larder.kept.stats == CacheStats(hits=0, misses=2, entries=1, size_bytes=40)


def test_one_that_cannot_be_made_is_not_kept(larder: Larder) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            larder.get("broken", 1)
    assert larder.kept.stats == CacheStats(hits=0, misses=2, entries=0, size_bytes=0)


def test_a_cleared_one_begins_anew(larder: Larder) -> None:
    larder.get("a", 40)
    larder.kept.clear()
    assert larder.kept.stats.size_bytes == 0
    larder.get("a", 40)
    assert larder.made == ["a", "a"]
