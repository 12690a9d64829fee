"""Caches parsed adapters in host memory and on the device."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from imagefleet_worker.adapters.delta import Adapter
from imagefleet_worker.adapters.kinds.factors import Factors
from imagefleet_worker.lru_cache import ByteLRUCache, CacheStats

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class AdapterCacheStats:
    """Counters of both tiers; a device hit does not count as a host hit."""

    host: CacheStats
    device: CacheStats


class AdapterCache(Generic[K]):
    """A two-tier LRU cache of adapters; for the engine's thread.

    Args:
        load: parses the adapter of a key. A key must change when its file does.
        device: of the weights that adapters are merged into. For a GPU, host copies are pinned,
            so that they transfer at full speed; for the CPU there is only the host tier.
        host_bytes: memory limit of the host tier.
        device_bytes: memory limit of the device tier.
    """

    def __init__(
        self,
        load: Callable[[K], Adapter],
        device: torch.device,
        *,
        host_bytes: int,
        device_bytes: int,
    ) -> None:
        self._load = load
        self._device = device
        self._host: ByteLRUCache[K, Adapter] = ByteLRUCache(_size, host_bytes)
        self._on_device: ByteLRUCache[K, Adapter] = ByteLRUCache(_size, device_bytes)

    @property
    def stats(self) -> AdapterCacheStats:
        return AdapterCacheStats(self._host.stats, self._on_device.stats)

    def get(self, key: K) -> Adapter:
        """The adapter of that key; raises what `load` raises."""
        if self._device.type == "cpu":
            return self._get_on_host(key)
        return self._on_device.get_or_load(key, lambda: self._copy_to_device(key))

    def _get_on_host(self, key: K) -> Adapter:
        return self._host.get_or_load(key, lambda: self._load_pinned(key))

    def _load_pinned(self, key: K) -> Adapter:
        adapter = self._load(key)
        if self._device.type != "cuda":
            return adapter
        return map_tensors(adapter, lambda tensor: tensor.pin_memory())

    def _copy_to_device(self, key: K) -> Adapter:
        return map_tensors(
            self._get_on_host(key), lambda tensor: tensor.to(self._device, non_blocking=True)
        )


def map_tensors(adapter: Adapter, change: Callable[[Tensor], Tensor]) -> Adapter:
    """Apply a function to each tensor of an adapter, such as pinning or moving it."""
    deltas = {
        target: delta.mapped(change)
        for target, delta in adapter.deltas.items()
        if isinstance(delta, Factors)
    }
    assert len(deltas) == len(adapter.deltas), "adapters of files consist of factors"
    return replace(adapter, deltas=deltas)


def _size(adapter: Adapter) -> int:
    return adapter.size_bytes
