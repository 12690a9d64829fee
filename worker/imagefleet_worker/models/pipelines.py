"""Warm pipelines: loaded checkpoints, kept while they fit a number of bytes."""

import gc
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from diffusers.utils import logging as diffusers_logging
from torch.nn import Module

from imagefleet_shared.errors import OutOfMemory
from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.adapters.keys import Naming
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.models.diffusers_folder import load_diffusers_folder
from imagefleet_worker.models.families import Family
from imagefleet_worker.models.single_file import load_single_file
from imagefleet_worker.models.skeleton import Pipeline
from imagefleet_worker.models.store import ModelFile, ModelStore
from imagefleet_worker.models.tuning import tune
from imagefleet_worker.presets import Options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmPipeline:
    """A checkpoint that is ready to run.

    Attributes:
        file: the checkpoint, in the version that was loaded.
        family: its architecture.
        pipeline: components in eval mode, with no gradients; those of another family are None or
            absent. ``unet`` and text encoders have ``dtype``. ``vae`` starts in it too and changes
            to float32 for good when it overflows, so encode and decode by ``vae.py`` alone.
            ``scheduler.config`` says what the UNet predicts (``prediction_type``,
            ``rescale_betas_zero_snr``).
        sha256: of the file, hexadecimal; None for a diffusers folder.
        native_size_px: the picture side that the model was trained at.
        device: where passes run; with ``offload`` the weights rest on the CPU.
        dtype: of UNet and text encoders.
        naming: its layers by the names that adapter files give them.
        merged: its weights with adapters on; what is on stays until another set is wanted.
    """

    file: ModelFile
    family: Family
    pipeline: Pipeline
    sha256: str | None
    native_size_px: int
    device: torch.device
    dtype: torch.dtype
    naming: Naming
    merged: MergedState

    @property
    def size_bytes(self) -> int:
        """Of all weights and buffers as they are now: a VAE that overflowed has grown."""
        parts = [part for part in self.pipeline.components.values() if isinstance(part, Module)]
        return sum(
            tensor.nbytes for part in parts for tensor in (*part.parameters(), *part.buffers())
        )


class PipelineCache:
    """Loads checkpoints and keeps them, least recently used out first; for the engine's thread.

    With ``options.offload`` one model is on the device at a time: each is moved there when it runs
    and back when the next one runs. The last one to run stays until
    ``pipeline.maybe_free_model_hooks()``.

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
    ) -> None:
        self._store = store
        self._device = device
        self._dtype = dtype
        self._options = options
        self._budget_bytes = budget_bytes
        self._originals_bytes = originals_bytes
        self._copies_bytes = copies_bytes if device.type == "cpu" else 0
        self._verify_every = verify_every
        # Least recently used first.
        self._warm: OrderedDict[ModelFile, WarmPipeline] = OrderedDict()
        # diffusers draws a bar while it loads a folder, in the middle of the worker's log.
        diffusers_logging.disable_progress_bar()

    def get(self, name: str) -> WarmPipeline:
        """The checkpoint of that name, loaded unless warm; a replaced file is loaded anew.

        A pipeline that makes room is dropped, so hold on to none for longer than its batch.

        Raises:
            UnknownCheckpoint, CorruptFile, FileUnavailable, WorkerFailure: as
                ``ModelStore.checkpoint``.
            OutOfMemory: the device has no room for it, alone.
        """
        file = self._store.find("checkpoint", name)
        if file in self._warm:
            self._warm.move_to_end(file)
            return self._warm[file]
        for stale in [other for other in self._warm if other.path == file.path]:
            self._evict(stale)
        # Its size on disk is a first guess; room is made before loading, lest both lie side by
        # side.
        self._make_room(file.size_bytes)
        warm = self._load(file)
        self._make_room(warm.size_bytes)
        self._warm[file] = warm
        return warm

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        return self._device

    def drop(self, warm: WarmPipeline) -> None:
        """Forget a pipeline whose weights are not to be trusted; the next `get` loads it anew."""
        for file in [file for file, known in self._warm.items() if known is warm]:
            self._evict(file)

    def _make_room(self, size_bytes: int) -> None:
        while self._warm and size_bytes + self._size_bytes() > self._budget_bytes:
            self._evict(next(iter(self._warm)))

    def _size_bytes(self) -> int:
        return sum(warm.size_bytes for warm in self._warm.values())

    def _evict(self, file: ModelFile) -> None:
        del self._warm[file]
        # Offload hooks point back at their models: only the collector frees those.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logger.info("unloaded %s", file.name, extra={"action": "unload_checkpoint"})

    def _load(self, file: ModelFile) -> WarmPipeline:
        started_s = time.monotonic()
        resting = torch.device("cpu") if self._options.offload else self._device
        folder = file.path.is_dir()
        load = load_diffusers_folder if folder else load_single_file
        try:
            # The hash is taken beside the load: both read the same pages, so the disk is read once.
            with ThreadPoolExecutor(max_workers=1) as hasher:
                digest = None if folder else hasher.submit(self._store.sha256, file)
                loaded = load(file.path, resting, self._dtype)
        except torch.OutOfMemoryError as exc:
            raise OutOfMemory(f"{self._device} has no room for {file.name}") from exc
        tune(loaded.pipeline, self._options, self._device)
        adaptable = _adaptable(loaded.pipeline)
        warm = WarmPipeline(
            file=file,
            family=loaded.family,
            pipeline=loaded.pipeline,
            sha256=None if digest is None else digest.result(),
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
