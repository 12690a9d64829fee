"""The upscaler cache: loads once, evicts the least recently used, frees memory at once."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefleet_worker.upscale.cache import UpscalerCache
from tools.make_demo_upscaler import make_demo_upscaler

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (1, 2, 3):
        save_file(make_demo_upscaler(2, seed), tmp_path / f"{seed}.safetensors")
    return tmp_path


def cache_of(folder: Path, budget_bytes: int) -> UpscalerCache:
    return UpscalerCache(
        lambda name: folder / f"{name}.safetensors",
        torch.device("cpu"),
        torch.float32,
        budget_bytes,
    )


def test_a_cached_upscaler_is_not_loaded_again(folder: Path) -> None:
    cache = cache_of(folder, 10**9)
    assert cache.get("1") is cache.get("1")
    assert cache.get("1") is not cache.get("2")


def test_a_changed_file_is_loaded_again_and_the_old_one_evicted(folder: Path) -> None:
    cache = cache_of(folder, 10**9)
    old = cache.get("1")
    save_file(make_demo_upscaler(4, seed=1), folder / "1.safetensors")
    new = cache.get("1")
    assert (old.scale, new.scale) == (2, 4)
    assert cache.size_bytes == new.size_bytes


def test_the_least_recently_used_upscaler_is_evicted_first(folder: Path) -> None:
    size = cache_of(folder, 0).get("1").size_bytes
    cache = cache_of(folder, 2 * size)
    first, second = cache.get("1"), cache.get("2")
    cache.get("1")
    cache.get("3")
    assert cache.size_bytes == 2 * size
    assert cache.get("1") is first
    assert cache.get("2") is not second


def test_an_upscaler_larger_than_the_budget_is_still_cached(folder: Path) -> None:
    cache = cache_of(folder, 1)
    assert cache.get("1") is cache.get("1")
    assert cache.get("2").scale == 2
    assert cache.size_bytes == cache.get("2").size_bytes


def test_an_evicted_upscaler_is_freed_at_once(folder: Path) -> None:
    """Freeing device memory must not depend on the garbage collector, which may run much later."""
    cache = cache_of(folder, 1)
    upscaler = cache.get("1")
    upscaler.upscale(
        torch.rand(1, 3, 20, 20), tile_size=16, tile_overlap=4, on_tile=lambda done, total: None
    )
    evicted = weakref.ref(upscaler)
    model = weakref.ref(upscaler._descriptor.model)  # pyright: ignore[reportPrivateUsage]
    gc.disable()
    try:
        del upscaler
        cache.get("2")
        assert evicted() is None
        assert model() is None
    finally:
        gc.enable()
