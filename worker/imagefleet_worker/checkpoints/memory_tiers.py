"""Memory tiers of warm pipelines: on the device, in host memory, or on disk only."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch

from imagefleet_worker import metrics
from imagefleet_worker.adapters.originals import StateCorrupted
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.device.cuda_graphs import discard_graphs
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.device.memory import free_failed_frames
from imagefleet_worker.device.transfer import move, release_cached_memory

T = TypeVar("T")

logger = logging.getLogger(__name__)


class MemoryTiers:
    """An LRU cache of pipelines by bytes, which demotes to host memory; for the engine's thread.

    In host memory a pipeline has the checkpoint's own weights, bit for bit: adapters are unmerged
    and saved originals discarded before it moves, and a copy brings it back. Its tensors stay the
    same objects.

    Args:
        device: where pipelines run.
        host: where idle pipelines are stored, in pinned memory if the device is a GPU.
        device_bytes: memory limit of the device tier; a single pipeline may exceed it.
        host_bytes: memory limit of the host tier; 0 disables it.
        on_drop: called with each file whose pipeline is no longer in memory.
    """

    def __init__(
        self,
        device: torch.device,
        host: torch.device,
        *,
        device_bytes: int,
        host_bytes: int,
        on_drop: Callable[[ModelFile], None],
    ) -> None:
        self._device, self._host = device, host
        self._device_bytes, self._host_bytes = device_bytes, host_bytes
        self._on_drop = on_drop
        # Least recently used first.
        self._on_device: OrderedDict[ModelFile, WarmPipeline] = OrderedDict()
        self._on_host: OrderedDict[ModelFile, WarmPipeline] = OrderedDict()

    def get(self, file: ModelFile) -> WarmPipeline | None:
        """The pipeline of a file, moved to the device if needed; None if it is in neither tier.

        Raises:
            ModelDoesNotFit: as `evict_until_it_fits`; the pipeline stays in host memory.
        """
        if file in self._on_device:
            self._on_device.move_to_end(file)
            metrics.PIPELINES.labels("device").inc()
            return self._on_device[file]
        warm = self._on_host.get(file)
        metrics.PIPELINES.labels("disk" if warm is None else "host").inc()
        if warm is not None:
            self._to_device(file, warm)
        return warm

    def add(self, warm: WarmPipeline) -> None:
        """Add a pipeline that is on the device; others are evicted to stay within the limit."""
        self.evict_to_fit(warm.size_bytes)
        self._on_device[warm.file] = warm
        self._update_metrics()

    @property
    def most_recent(self) -> ModelFile | None:
        """The file of the most recently used pipeline on the device."""
        return next(reversed(self._on_device), None)

    def pipelines_on_device(self) -> list[WarmPipeline]:
        """The pipelines on the device, least recently used first."""
        return list(self._on_device.values())

    def evict_to_fit(self, size_bytes: int) -> None:
        """Evict pipelines from the device until this many bytes fit its limit, or none is left."""
        while self._on_device and size_bytes + _bytes(self._on_device) > self._device_bytes:
            self._to_host(next(iter(self._on_device)))

    def evict_until_it_fits(self, file: ModelFile, allocate: Callable[[], T]) -> T:
        """Return `allocate()`; each time it runs out of memory, evict a pipeline and retry.

        Raises:
            ModelDoesNotFit: it ran out of memory with no pipeline left to evict.
        """
        while True:
            try:
                return allocate()
            except torch.OutOfMemoryError as exc:
                if not self._on_device:
                    raise ModelDoesNotFit(f"{self._device} has no room for {file.name}") from exc
                free_failed_frames(exc)
            logger.warning(
                "%s has no room for %s: evicting another pipeline", self._device, file.name
            )
            self._to_host(next(iter(self._on_device)))

    def evict_idle(self) -> bool:
        """Discard all CUDA graphs and evict all but the most recent pipeline; False if none."""
        idle = list(self._on_device)[:-1]
        discarded = [discard_graphs(warm.pipeline.unet) for warm in self._on_device.values()]
        for file in idle:
            self._to_host(file)
        self._free()
        return bool(idle) or any(discarded)

    def drop(self, file: ModelFile) -> None:
        """Remove a file's pipeline from both tiers, if it is cached."""
        if file in self._on_device or file in self._on_host:
            self._on_device.pop(file, None)
            self._on_host.pop(file, None)
            self._on_dropped(file)

    def drop_others_named(self, file: ModelFile) -> None:
        """Remove pipelines of other versions of a file."""
        for other in [*self._on_device, *self._on_host]:
            if other.name == file.name and other != file:
                self.drop(other)

    def _to_device(self, file: ModelFile, warm: WarmPipeline) -> None:
        started_s = time.monotonic()
        # Removed from the host tier first, so that evictions cannot drop this pipeline.
        del self._on_host[file]
        try:
            self.evict_to_fit(warm.size_bytes)
            self.evict_until_it_fits(file, lambda: move(warm.tensors(), self._device))
        except ModelDoesNotFit:
            self._on_host[file] = warm
            raise
        self._on_device[file] = warm
        self._update_metrics()
        _log("raised", "from host memory", warm, started_s)

    def _to_host(self, file: ModelFile) -> None:
        """Move a pipeline from the device to host memory if it fits there, else drop it."""
        warm = self._on_device.pop(file)
        discard_graphs(warm.pipeline.unet)
        size_bytes = warm.size_bytes
        if size_bytes <= self._host_bytes:
            while size_bytes + _bytes(self._on_host) > self._host_bytes:
                self._on_dropped(self._on_host.popitem(last=False)[0])
            if self._move_to_host(warm):
                self._on_host[file] = warm
                self._free()
                return
        # This frame's reference would keep the garbage collector from freeing it.
        del warm
        self._on_dropped(file)

    def _move_to_host(self, warm: WarmPipeline) -> bool:
        started_s = time.monotonic()
        try:
            warm.merged.release()
            move(warm.tensors(), self._host)
        except StateCorrupted as exc:
            metrics.CORRUPTED.inc()
            logger.error("checkpoint %s is dropped: %s", warm.file.name, exc)
            return False
        except (RuntimeError, MemoryError) as exc:
            logger.warning("host memory is too small for %s: %s", warm.file.name, exc)
            return False
        _log("lowered", "to host memory", warm, started_s)
        return True

    def _on_dropped(self, file: ModelFile) -> None:
        self._on_drop(file)
        self._free()
        logger.info("unloaded %s", file.name, extra={"action": "unload_checkpoint"})

    def _free(self) -> None:
        release_cached_memory(self._device)
        self._update_metrics()

    def _update_metrics(self) -> None:
        metrics.PIPELINE_BYTES.labels("device").set(_bytes(self._on_device))
        metrics.PIPELINE_BYTES.labels("host").set(_bytes(self._on_host))


def _bytes(tier: OrderedDict[ModelFile, WarmPipeline]) -> int:
    return sum(warm.size_bytes for warm in tier.values())


def _log(action: str, direction: str, warm: WarmPipeline, started_s: float) -> None:
    logger.info(
        "%s %s %s (%.1f GB) in %.2f s",
        *(action, warm.file.name, direction, warm.size_bytes / 1e9, time.monotonic() - started_s),
        extra={"action": f"{action}_checkpoint", "checkpoint": warm.file.name},
    )
