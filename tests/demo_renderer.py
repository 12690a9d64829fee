"""The demo's trained models, drawing in this process by the worker's own path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imagefleet_producer import GenerateRequest
from imagefleet_shared.status import Stage
from imagefleet_shared.storage import FileStore
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.requests.resolved import ResolvedGenerate
from imagefleet_worker.settings import WorkerSettings
from tests.fleet import REPOSITORY
from tests.jobs import record

TRAINED = REPOSITORY / "worker/models"
STEPS = 20
GUIDANCE = 4.0
_BATCH = 12


def _ignore_progress(stage: Stage, step: int, steps: int) -> None:
    """Tell nobody."""


class DemoRenderer:
    """Draws requests; those of equal settings in batches, as the engine does."""

    def __init__(self, folder: Path, models: Path = TRAINED) -> None:
        """`folder` is for the store of input pictures, of which there are none."""
        settings = WorkerSettings(models_dir=models, default_checkpoint="demo")
        store = ModelStore(models)
        self._resolver = Resolver(settings, store, FileStore(folder))
        self._studio = build_renderer(settings, store, torch.device("cpu"))

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], **fields: object
    ) -> list[Image.Image]:
        """A picture for each prompt and seed; the other fields of the request are the same."""
        settings: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            **fields,
        }
        jobs = [
            self._resolved(GenerateRequest(prompt=prompt, seed=seed, **settings))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        pictures: list[Image.Image] = []
        for start in range(0, len(jobs), _BATCH):
            part = jobs[start : start + _BATCH]
            for [picture] in self._studio.render(
                part, BatchProgress([_ignore_progress] * len(part))
            ):
                pictures.append(picture)
        return pictures

    def _resolved(self, request: GenerateRequest) -> ResolvedGenerate:
        resolved = self._resolver.resolve(record(request))
        assert isinstance(resolved, ResolvedGenerate)
        return resolved
