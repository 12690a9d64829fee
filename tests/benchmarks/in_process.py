"""Requests drawn by the worker's engine in this process: no queue, no ledger, no store."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from imagefleet_producer import GenerateRequest
from imagefleet_shared.status import Stage
from imagefleet_shared.storage import FileStore
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.engine.requests import RenderOutput
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings


class InProcess:
    """An engine with its studio, fed as a worker's slots feed it: so many jobs at once.

    In a process of its own: OpenMP suffers where a second thread computes.
    """

    def __init__(self, models: Path, device: str, slots: int) -> None:
        settings = WorkerSettings(models_dir=models, slots=slots)
        store = ModelStore(models)
        self._resolver = Resolver(settings, store, FileStore(models))
        self._slots = slots
        self._engine = Engine(
            lambda: build_renderer(settings, store, torch.device(device)),
            lambda _busy: None,
            settings.max_batch_pixels,
        )
        self._engine.start()
        self._engine.ready.result()

    def __call__(self, requests: Sequence[GenerateRequest]) -> float:
        """Draw them all, taken up in their order; gives the number of batches."""
        with ThreadPoolExecutor(self._slots) as slots:
            rendered = list(slots.map(self._rendered, requests))
        return sum(1 / one.batch_jobs for one in rendered)

    def _rendered(self, request: GenerateRequest) -> RenderOutput:
        return self._engine.render(self._resolver.generate(request, "job"), _tell_nobody)


def _tell_nobody(stage: Stage, step: int, steps: int) -> None:
    """Nobody is told."""
