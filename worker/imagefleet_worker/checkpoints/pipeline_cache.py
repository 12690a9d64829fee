"""Warm pipelines: checkpoints loaded and kept."""

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
from imagefleet_worker.device.errors import NoRoomForWeights
from imagefleet_worker.device.memory import free_after
from imagefleet_worker.device.presets import Options

T = TypeVar("T")

logger = logging.getLogger(__name__)


class PipelineCache:
    """Loads checkpoints and keeps them, least recently used out first; for the engine's thread.

    With ``options.offload`` as `model` one is on the device at a time: each is moved there when it
    runs and back when the next one runs. The last one to run stays until `rest`.

    Args:
        store: where names are looked up.
        device: where passes run.
        dtype: of the weights, until a VAE is found to overflow in it.
        options: that each pipeline is made to run by.
        budget_bytes: for all warm pipelines together; one alone may be larger.
        originals_bytes: for the saved weights of each pipeline on the device; see `Originals`.
        copies_bytes: for the merged weights of each pipeline on the CPU; see `MergedState`. A GPU
            merges in the time of some copies, and has better use for the memory.
        verify_every: see `MergedState`.
        host_bytes: beside an accelerator, for pipelines that had to leave it; see `Tiers`.
    """

    def __init__(
        self,
        store: ModelStore,
        device: torch.device,
        dtype: torch.dtype,
        options: Options,
        budget_bytes: int,
        originals_bytes: int,
        copies_bytes: int,
        verify_every: int,
        host_bytes: int = 0,
    ) -> None:
        self._store = store
        self._device = device
        self._dtype = dtype
        self._options = options
        self._rest_device = device if options.offload == "none" else torch.device("cpu")
        # The CPU's memory is the host's, and offloaded weights rest there anyway.
        moves = self._rest_device.type != "cpu"
        self._tiers = MemoryTiers(
            device,
            torch.device("cpu"),
            device_bytes=budget_bytes,
            host_bytes=host_bytes if moves else 0,
            on_drop=store.read_ahead.unloaded,
        )
        self._originals_bytes = originals_bytes
        self._copies_bytes = copies_bytes if device.type == "cpu" else 0
        self._verify_every = verify_every
        # diffusers draws a bar while it loads a folder, in the middle of the worker's log.
        diffusers_logging.disable_progress_bar()

    def get(self, file: ModelFile) -> WarmPipeline:
        """That checkpoint, loaded unless it is kept; an earlier version of its file is dropped.

        A pipeline that makes room leaves the device, so hold on to none for longer than its batch.

        Raises:
            CorruptFile, FileUnavailable: as `load_single_file` and `load_diffusers_folder`.
            NoRoomForWeights: the device has no room for it, alone.
        """
        if file != self._tiers.last:
            self.offload_idle()
        found = self._tiers.get(file)
        if found is not None:
            return found
        self._tiers.drop_others_named(file)
        # Its size on disk is a first guess; room is made before loading, lest both lie side by
        # side.
        self._tiers.make_room(file.size_bytes)
        warm = self._tiers.evict_until_it_fits(file, lambda: self._load(file))
        self._tiers.add(warm)
        self._store.read_ahead.loaded(file)
        return warm

    @property
    def rest_device(self) -> torch.device:
        """Where weights are while they do not run, and adapters are merged."""
        return self._rest_device

    def offload_idle(self) -> None:
        """Have those weights leave the device that `offload` moved there to run."""
        if self._options.offload == "model":
            for warm in self._tiers.on_device():
                warm.pipeline.maybe_free_model_hooks()
        elif self._options.offload == "sequential" and self._device.type == "cuda":
            # Copies of layers may still be queued, of weights that are about to change.
            torch.cuda.synchronize(self._device)

    def retry_after_eviction(self, run: Callable[[], T], *, divisible: bool) -> T:
        """What `run` gives; out of memory, it runs once more with idle pipelines off the device.

        Args:
            run: calls `get` for all that it uses.
            divisible: it could do with less at a time, which is for the caller to try first.
        """
        try:
            return run()
        except (torch.OutOfMemoryError, NoRoomForWeights) as exc:
            if divisible and not isinstance(exc, NoRoomForWeights):
                raise
            free_after(exc)
            if self._rest_device != self._device or not self._tiers.evict_idle():
                raise
        logger.warning("out of memory: once more with idle pipelines off the device")
        return run()

    def drop(self, warm: WarmPipeline) -> None:
        """Forget a pipeline whose weights are not to be trusted; the next `get` loads it anew."""
        self._tiers.drop(warm.file)

    def _load(self, file: ModelFile) -> WarmPipeline:
        started_s = time.monotonic()
        load = load_diffusers_folder if file.path.is_dir() else load_single_file
        loaded = load(file.path, self._rest_device, self._dtype)
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
                copies_bytes=self._copies_bytes,
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
