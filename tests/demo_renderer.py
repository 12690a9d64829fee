"""Render with the demo's trained models in this process, using the worker's own code."""

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
GUIDANCE_SCALE = 4.0
_BATCH_SIZE = 12


def _ignore_progress(stage: Stage, step: int, steps: int) -> None:
    """Report nothing."""


class DemoRenderer:
    """Renders requests of equal settings in batches, as the engine does."""

    def __init__(self, folder: Path, models: Path = TRAINED) -> None:
        """`folder` is for the store of input images, of which there are none."""
        settings = WorkerSettings(models_dir=models, default_checkpoint="demo")
        store = ModelStore(models)
        self._resolver = Resolver(settings, store, FileStore(folder))
        self._renderer = build_renderer(settings, store, torch.device("cpu"))

    def render(
        self, prompts: Sequence[str], seeds: Sequence[int], **fields: object
    ) -> list[Image.Image]:
        """Render a picture for each prompt and seed; other request fields are shared by all."""
        settings: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE_SCALE,
            **fields,
        }
        jobs = [
            self._resolve(GenerateRequest(prompt=prompt, seed=seed, **settings))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        pictures: list[Image.Image] = []
        for start in range(0, len(jobs), _BATCH_SIZE):
            batch = jobs[start : start + _BATCH_SIZE]
            for [picture] in self._renderer.render(
                batch, BatchProgress([_ignore_progress] * len(batch))
            ):
                pictures.append(picture)
        return pictures

    def _resolve(self, request: GenerateRequest) -> ResolvedGenerate:
        resolved = self._resolver.resolve(record(request))
        assert isinstance(resolved, ResolvedGenerate)
        return resolved
