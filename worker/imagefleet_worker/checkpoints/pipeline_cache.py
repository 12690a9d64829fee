"""Loads checkpoints as pipelines and caches them."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers.utils import logging as diffusers_logging
from torch.nn import Module

from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.apply_options import apply_options
from imagefleet_worker.checkpoints.diffusers_folder import load_diffusers_folder
from imagefleet_worker.checkpoints.empty_pipeline import Pipeline
from imagefleet_worker.checkpoints.memory_tiers import MemoryTiers
from imagefleet_worker.checkpoints.single_file import load_single_file
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.device.memory import free_failed_frames
from imagefleet_worker.device.presets import Options

T = TypeVar("T")

logger = logging.getLogger(__name__)


class PipelineCache:
    """An LRU cache of loaded checkpoints; for the engine's thread.

    With ``options.offload`` set to `model`, one model is on the device at a time: each is moved
    there when it runs and back when the next one runs. The last one stays until `offload_idle`.

    Args:
        store: told which checkpoints are loaded, so that it does not read them ahead.
        device: where passes run.
        dtype: of the weights, until a VAE is found to overflow in it.
        options: applied to each pipeline.
        budget_bytes: memory limit of all warm pipelines; a single one may exceed it.
        originals_bytes: for the saved weights of each pipeline on the device; see `Originals`.
        merged_cache_bytes: for cached merged weights of each pipeline on the CPU; see
            `MergedState`. A GPU merges nearly as fast as it copies, so it has no such cache.
        verify_every: see `MergedState`.
        host_bytes: for pipelines evicted from an accelerator; see `MemoryTiers`.
    """

    def __init__(
        self,
        store: ModelStore,
        device: torch.device,
        dtype: torch.dtype,
        options: Options,
        budget_bytes: int,
        originals_bytes: int,
        merged_cache_bytes: int,
        verify_every: int,
        host_bytes: int = 0,
    ) -> None:
        self._store = store
        self._device = device
        self._dtype = dtype
        self._options = options
        self._weights_device = device if options.offload == "none" else torch.device("cpu")
        # On the CPU, and with offloading, weights are in host memory anyway.
        has_host_tier = self._weights_device.type != "cpu"
        self._tiers = MemoryTiers(
            device,
            torch.device("cpu"),
            device_bytes=budget_bytes,
            host_bytes=host_bytes if has_host_tier else 0,
            on_drop=store.read_ahead.mark_unloaded,
        )
        self._originals_bytes = originals_bytes
        self._merged_cache_bytes = merged_cache_bytes if device.type == "cpu" else 0
        self._verify_every = verify_every
        # diffusers shows a progress bar while it loads a folder, which would garble the log.
        diffusers_logging.disable_progress_bar()

    def get(self, file: ModelFile) -> WarmPipeline:
        """The checkpoint's pipeline, loaded on a miss; other versions of its file are dropped.

        Later calls may evict the pipeline, so hold no reference beyond the batch.

        Raises:
            CorruptFile, FileUnavailable: as `load_single_file` and `load_diffusers_folder`.
            ModelDoesNotFit: the device lacks the memory for it even with all others evicted.
        """
        if file != self._tiers.most_recent:
            self.offload_idle()
        cached = self._tiers.get(file)
        if cached is not None:
            return cached
        self._tiers.drop_others_named(file)
        # Evict before loading, lest old and new be in memory at once; the size on disk is an
        # estimate.
        self._tiers.evict_to_fit(file.size_bytes)
        warm = self._tiers.evict_until_it_fits(file, lambda: self._load(file))
        self._tiers.add(warm)
        self._store.read_ahead.mark_loaded(file)
        return warm

    @property
    def weights_device(self) -> torch.device:
        """Where weights are stored when idle, and where adapters are merged."""
        return self._weights_device

    def offload_idle(self) -> None:
        """Move weights that `offload` brought to the device back to host memory."""
        if self._options.offload == "model":
            for warm in self._tiers.pipelines_on_device():
                warm.pipeline.maybe_free_model_hooks()
        elif self._options.offload == "sequential" and self._device.type == "cuda":
            # Queued copies of layers may still read weights that are about to change.
            torch.cuda.synchronize(self._device)

    def retry_after_eviction(self, run: Callable[[], T], *, divisible: bool) -> T:
        """Return `run()`; if it runs out of memory, evict idle pipelines and run it once more.

        Args:
            run: gets every pipeline it uses through `get`.
            divisible: the caller can split the batch instead, which it should try first; then
                torch's error is raised as is.
        """
        try:
            return run()
        except (torch.OutOfMemoryError, ModelDoesNotFit) as exc:
            if divisible and not isinstance(exc, ModelDoesNotFit):
                raise
            free_failed_frames(exc)
            if self._weights_device != self._device or not self._tiers.evict_idle():
                raise
        logger.warning("out of memory: evicted idle pipelines, retrying")
        return run()

    def drop(self, warm: WarmPipeline) -> None:
        """Remove a pipeline whose weights may be corrupted; the next `get` reloads it."""
        self._tiers.drop(warm.file)

    def _load(self, file: ModelFile) -> WarmPipeline:
        started_s = time.monotonic()
        load = load_diffusers_folder if file.path.is_dir() else load_single_file
        loaded = load(file.path, self._weights_device, self._dtype)
        apply_options(loaded.pipeline, self._options, self._device)
        adaptable = _adaptable(loaded.pipeline)
        warm = WarmPipeline(
            file=file,
            family=loaded.family,
            pipeline=loaded.pipeline,
            native_size_px=loaded.native_size_px,
            device=self._device,
            dtype=self._dtype,
            naming=Naming(loaded.family, adaptable),
            merged=MergedState(
                adaptable,
                device_budget_bytes=self._originals_bytes,
                merged_cache_bytes=self._merged_cache_bytes,
                verify_every=self._verify_every,
            ),
        )
        size_bytes = warm.size_bytes
        logger.info(
            "loaded %s (%.1f GB) in %.1f s",
            file.name,
            size_bytes / 1e9,
            time.monotonic() - started_s,
            extra={"action": "load_checkpoint", "checkpoint": file.name, "size_bytes": size_bytes},
        )
        return warm


def _adaptable(pipeline: Pipeline) -> dict[Component, Module]:
    names: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")
    return {name: pipeline.components[name] for name in names if pipeline.components.get(name)}
