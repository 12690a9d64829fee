"""Rendering requests by the worker's engine in this process, without queue, ledger or store."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from imagefleet_producer import GenerateRequest
from imagefleet_shared.status import Stage
from imagefleet_shared.storage import FileStore
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.device.memory import CPU_MEMORY, CudaMemory
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.engine.engine_request import RenderOutput
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings


class InProcessEngine:
    """An engine with its renderer, fed by as many concurrent jobs as a worker has slots.

    Run it in its own process: OpenMP slows down when a second thread computes.
    """

    def __init__(
        self, models: Path, device: str, slots: int, compile_cache_dir: Path | None = None
    ) -> None:
        settings = WorkerSettings(models_dir=models, slots=slots)
        if compile_cache_dir is not None:
            settings = settings.model_copy(update={"compile_cache_dir": compile_cache_dir})
        store, torch_device = ModelStore(models), torch.device(device)
        self._resolver = Resolver(settings, store, FileStore(models))
        self._slots = slots
        self._engine = Engine(
            lambda: build_renderer(settings, store, torch_device),
            lambda _busy: None,
            settings.max_batch_pixels,
            memory=CudaMemory(torch_device) if torch_device.type == "cuda" else CPU_MEMORY,
        )
        self._engine.start()
        self._engine.ready.result()

    def __call__(self, requests: Sequence[GenerateRequest]) -> float:
        """Render all requests, submitted in order; returns the number of batches."""
        return sum(1 / output.batch_jobs for output in self.render(requests))

    def render(self, requests: Sequence[GenerateRequest]) -> list[RenderOutput]:
        """Render all requests, submitted in order."""
        with ThreadPoolExecutor(self._slots) as slots:
            return list(slots.map(self._render_one, requests))

    def close(self) -> None:
        """End the engine's thread; the renderer's memory is free afterwards."""
        self._engine.close()
        self._engine.join()

    def _render_one(self, request: GenerateRequest) -> RenderOutput:
        return self._engine.render(
            self._resolver.resolve_generate(request, "job"), _ignore_progress
        )


def _ignore_progress(stage: Stage, step: int, steps: int) -> None:
    """A progress callback that does nothing."""
