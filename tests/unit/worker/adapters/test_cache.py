"""Where parsed adapters are kept."""

import torch

from imagefleet_worker.adapters.cache import AdapterCache, map_tensors
from imagefleet_worker.adapters.delta import Adapter, Target
from imagefleet_worker.adapters.kinds.elementwise import Full

TARGET = Target("unet", "conv_in.weight")


def adapter(sha256: str) -> Adapter:
    return Adapter(sha256, {TARGET: Full(torch.ones(4, 4))}, 64)


def cache(device: str) -> AdapterCache[str]:
    return AdapterCache(adapter, torch.device(device), host_bytes=1000, device_bytes=64)


def tensors(held: Adapter) -> list[torch.Tensor]:
    [delta] = held.deltas.values()
    assert isinstance(delta, Full)
    return list(delta.tensors())


def test_beside_the_cpu_there_is_one_place() -> None:
    kept = cache("cpu")
    assert kept.get("a") is kept.get("a")
    assert (kept.stats.host.hits, kept.stats.host.misses) == (1, 1)
    assert kept.stats.device.entries == 0


def test_beside_another_device_adapters_are_kept_there_and_in_host_memory() -> None:
    kept = cache("meta")
    assert [tensor.device.type for tensor in tensors(kept.get("a"))] == ["meta"]
    kept.get("a")
    kept.get("b")
    kept.get("a")
    assert (kept.stats.device.hits, kept.stats.device.misses) == (1, 3), "room for one"
    assert (kept.stats.host.hits, kept.stats.host.misses) == (1, 2), "both are still here"


def test_a_moved_adapter_is_the_same_adapter() -> None:
    held = adapter("a")
    moved = map_tensors(held, lambda tensor: tensor.to(torch.float16))
    assert (moved.sha256, moved.deltas.keys()) == ("a", held.deltas.keys())
    assert tensors(moved)[0].dtype == torch.float16
    assert tensors(held)[0].dtype == torch.float32
