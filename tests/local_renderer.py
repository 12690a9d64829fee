"""Render requests in this process with the real renderer; also images and masks for them."""

from io import BytesIO
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.status import Stage
from imagefleet_shared.storage import FileStore
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.renderer import DiffusionRenderer
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings
from tests.jobs import resolved
from tools.make_demo_checkpoint import write_demo_checkpoint

_CPU = torch.device("cpu")
SIDE = 64
"""Default width and height of a picture, in pixels."""


class LocalRenderer:
    """Renders requests in this process."""

    def __init__(self, models: ModelStore, renderer: DiffusionRenderer, store: FileStore) -> None:
        self._models, self._renderer, self._store = models, renderer, store
        self.reports: list[tuple[Stage, int, int]] = []

    def render(self, prompt: str = "a red fox", **fields: object) -> Image.Image:
        [picture] = self.render_all(prompt, **fields)
        return picture

    def render_all(self, prompt: str = "a red fox", **fields: object) -> list[Image.Image]:
        settings: dict[str, Any] = {
            **{"num_inference_steps": 4, "width": SIDE, "height": SIDE, "seed": 1},
            **fields,
        }
        job = resolved(self._models, self._store, prompt=prompt, **settings)
        self.reports = []
        progress = BatchProgress(
            [lambda stage, step, steps: self.reports.append((stage, step, steps))]
        )
        [pictures] = self._renderer.render([job], progress)
        return pictures

    def steps(self, stage: Stage) -> tuple[int, int]:
        """The steps that a stage of the last job announced, and those that it ran."""
        reports = [(step, steps) for reported, step, steps in self.reports if reported == stage]
        return reports[-1][1], max(step for step, _ in reports)

    def warm(self, checkpoint: str) -> WarmPipeline:
        """The pipeline of a checkpoint, loaded if necessary."""
        return self.pipelines.get(self._models.find("checkpoint", checkpoint))

    @property
    def pipelines(self) -> PipelineCache:
        """The renderer's pipeline cache."""
        return self._renderer._pipelines  # pyright: ignore[reportPrivateUsage]

    def upload(self, picture: Image.Image) -> ImageRef:
        file = BytesIO()
        picture.save(file, "PNG")
        content = file.getvalue()
        key = f"inputs/{hash(content)}.png"
        self._store.put_new(key, content, "image/png")
        return ImageRef(key=key)


def open_local_renderer(demo_models: Path, folder: Path) -> LocalRenderer:
    """A renderer with the demo's models, another SD 1.x checkpoint (`other`) and a refiner
    (`xl-refiner`).

    Args:
        demo_models: the demo's model folder, which is copied.
        folder: empty, for the models and the input images.
    """
    copytree(demo_models, folder / "models")
    checkpoints = folder / "models/checkpoints"
    write_demo_checkpoint(checkpoints / "other.safetensors", "sd1", seed=7)
    write_demo_checkpoint(checkpoints / "xl-refiner.safetensors", "sdxl_refiner", seed=3)
    return open_renderer(folder / "models", folder / "store", WorkerSettings(verify_every=1))


def open_renderer(
    models_dir: Path, folder: Path, settings: WorkerSettings, device: torch.device = _CPU
) -> LocalRenderer:
    """A renderer with these models and settings, warmed up if the settings require it.

    Args:
        models_dir: the model folder.
        folder: for the input images.
        settings: of the worker.
        device: of the renderer.
    """
    models, store = ModelStore(models_dir), FileStore(folder)
    resolver = Resolver(settings, models, store)
    return LocalRenderer(models, build_renderer(settings, models, device, resolver), store)


def photo(width: int = SIDE, height: int = SIDE) -> Image.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def mask(box: tuple[int, int, int, int] = (16, 16, 48, 48)) -> Image.Image:
    white = Image.new("L", (SIDE, SIDE))
    white.paste(255, box)
    return white
