"""Where warm pipelines are: on the device, then in host memory, then on disk alone."""

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
from imagefleet_worker.device.cuda_graphs import forget_graphs
from imagefleet_worker.device.errors import NoRoomForWeights
from imagefleet_worker.device.memory import free_after
from imagefleet_worker.device.transfer import give_back_unused, move

T = TypeVar("T")

logger = logging.getLogger(__name__)


class MemoryTiers:
    """Keeps pipelines by bytes, the least recently used one tier down; for the engine's thread.

    In host memory a pipeline has the checkpoint's own weights, bit for bit: adapters are taken off
    and saved originals dropped before it moves, and it comes back by a copy. Its tensors stay the
    same objects.

    Args:
        device: where pipelines run.
        host: where they rest, page-locked where the device is a GPU.
        device_bytes: for pipelines on the device; one alone may be larger.
        host_bytes: for those that had to leave it; 0: they are dropped.
        dropped: hears of each that is on disk alone from now on.
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
        """The pipeline of a file, on the device; None where it is in neither tier.

        Raises:
            NoRoomForWeights: as `having_room`; it stays in host memory.
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
        """Keep a pipeline that is on the device; others make room."""
        self.make_room(warm.size_bytes)
        self._on_device[warm.file] = warm
        self._update_metrics()

    @property
    def last(self) -> ModelFile | None:
        """The file whose pipeline was used last."""
        return next(reversed(self._on_device), None)

    def on_device(self) -> list[WarmPipeline]:
        """Those that are there, least recently used first."""
        return list(self._on_device.values())

    def make_room(self, size_bytes: int) -> None:
        """Have so many bytes free of the device's, as far as others can leave it."""
        while self._on_device and size_bytes + _bytes(self._on_device) > self._device_bytes:
            self._to_host(next(iter(self._on_device)))

    def evict_until_it_fits(self, file: ModelFile, take: Callable[[], T]) -> T:
        """What `take` gives; as often as it runs out of memory, a pipeline leaves the device first.

        Raises:
            NoRoomForWeights: none is left there.
        """
        while True:
            try:
                return take()
            except torch.OutOfMemoryError as exc:
                if not self._on_device:
                    raise NoRoomForWeights(f"{self._device} has no room for {file.name}") from exc
                free_after(exc)
            logger.warning("%s has no room for %s beside others", self._device, file.name)
            self._to_host(next(iter(self._on_device)))

    def evict_idle(self) -> bool:
        """Have all graphs and all but the last pipeline leave the device; False: there are none."""
        others = list(self._on_device)[:-1]
        forgotten = [forget_graphs(warm.pipeline.unet) for warm in self._on_device.values()]
        for file in others:
            self._to_host(file)
        self._free()
        return bool(others) or any(forgotten)

    def drop(self, file: ModelFile) -> None:
        """Forget a file's pipeline, if there is one."""
        if file in self._on_device or file in self._on_host:
            self._on_device.pop(file, None)
            self._on_host.pop(file, None)
            self._forget(file)

    def drop_others_named(self, file: ModelFile) -> None:
        """Forget pipelines of other versions of a file."""
        for other in [*self._on_device, *self._on_host]:
            if other.name == file.name and other != file:
                self.drop(other)

    def _to_device(self, file: ModelFile, warm: WarmPipeline) -> None:
        """Host memory to the device."""
        started_s = time.monotonic()
        # Out of the host's list first: whoever makes room must not push this one out.
        del self._on_host[file]
        try:
            self.make_room(warm.size_bytes)
            self.evict_until_it_fits(file, lambda: move(warm.tensors(), self._device))
        except NoRoomForWeights:
            self._on_host[file] = warm
            raise
        self._on_device[file] = warm
        self._update_metrics()
        _log("raised", "from host memory", warm, started_s)

    def _to_host(self, file: ModelFile) -> None:
        """From the device to host memory where it fits, else dropped."""
        warm = self._on_device.pop(file)
        forget_graphs(warm.pipeline.unet)
        size_bytes = warm.size_bytes
        if size_bytes <= self._host_bytes:
            while size_bytes + _bytes(self._on_host) > self._host_bytes:
                self._forget(self._on_host.popitem(last=False)[0])
            if self._move_to_host(warm):
                self._on_host[file] = warm
                self._free()
                return
        # The collector would find this frame's hold on it.
        del warm
        self._forget(file)

    def _move_to_host(self, warm: WarmPipeline) -> bool:
        started_s = time.monotonic()
        try:
            warm.merged.release()
            move(warm.tensors(), self._host)
        except StateCorrupted as exc:
            metrics.CORRUPTED.inc()
            logger.error("checkpoint %s is not kept: %s", warm.file.name, exc)
            return False
        except (RuntimeError, MemoryError) as exc:
            logger.warning("host memory has no room for %s: %s", warm.file.name, exc)
            return False
        _log("lowered", "to host memory", warm, started_s)
        return True

    def _forget(self, file: ModelFile) -> None:
        self._on_drop(file)
        self._free()
        logger.info("unloaded %s", file.name, extra={"action": "unload_checkpoint"})

    def _free(self) -> None:
        give_back_unused(self._device)
        self._update_metrics()

    def _update_metrics(self) -> None:
        metrics.PIPELINE_BYTES.labels("device").set(_bytes(self._on_device))
        metrics.PIPELINE_BYTES.labels("host").set(_bytes(self._on_host))


def _bytes(tier: OrderedDict[ModelFile, WarmPipeline]) -> int:
    return sum(warm.size_bytes for warm in tier.values())


def _log(action: str, whither: str, warm: WarmPipeline, started_s: float) -> None:
    logger.info(
        "%s %s %s (%.1f GB) in %.2f s",
        *(action, warm.file.name, whither, warm.size_bytes / 1e9, time.monotonic() - started_s),
        extra={"action": f"{action}_checkpoint", "checkpoint": warm.file.name},
    )
