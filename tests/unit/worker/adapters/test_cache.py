"""The two-tier cache of parsed adapters."""

import torch

from imagefleet_worker.adapters.cache import AdapterCache, map_tensors
from imagefleet_worker.adapters.delta import Adapter, Target
from imagefleet_worker.adapters.kinds.elementwise import Full

TARGET = Target("unet", "conv_in.weight")


def adapter(sha256: str) -> Adapter:
    return Adapter(sha256, {TARGET: Full(torch.ones(4, 4))}, 64)


def cache(device: str) -> AdapterCache[str]:
    return AdapterCache(adapter, torch.device(device), host_bytes=1000, device_bytes=64)


def tensors(adapter: Adapter) -> list[torch.Tensor]:
    [delta] = adapter.deltas.values()
    assert isinstance(delta, Full)
    return list(delta.tensors())


def test_on_the_cpu_there_is_only_the_host_tier() -> None:
    adapter_cache = cache("cpu")
    assert adapter_cache.get("a") is adapter_cache.get("a")
    assert (adapter_cache.stats.host.hits, adapter_cache.stats.host.misses) == (1, 1)
    assert adapter_cache.stats.device.entries == 0


def test_on_another_device_adapters_are_cached_there_and_in_host_memory() -> None:
    adapter_cache = cache("meta")
    assert [tensor.device.type for tensor in tensors(adapter_cache.get("a"))] == ["meta"]
    adapter_cache.get("a")
    adapter_cache.get("b")
    adapter_cache.get("a")
    assert (adapter_cache.stats.device.hits, adapter_cache.stats.device.misses) == (1, 3), (
        "fits one"
    )
    assert (adapter_cache.stats.host.hits, adapter_cache.stats.host.misses) == (1, 2), "fits both"


def test_mapping_tensors_preserves_the_adapter() -> None:
    original = adapter("a")
    moved = map_tensors(original, lambda tensor: tensor.to(torch.float16))
    assert (moved.sha256, moved.deltas.keys()) == ("a", original.deltas.keys())
    assert tensors(moved)[0].dtype == torch.float16
    assert tensors(original)[0].dtype == torch.float32
