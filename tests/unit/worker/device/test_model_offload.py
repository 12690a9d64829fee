"""With model offload, idle weights are in host memory, where adapters are merged.

Torch's `meta` device stands in for the GPU, on which no idle weights may remain.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines import pipeline_utils
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from imagefleet_shared.errors import JobCanceled
from imagefleet_shared.status import Stage
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.diffusion.lora_switcher import LoRASwitcher
from imagefleet_worker.progress import BatchCanceled, BatchProgress
from imagefleet_worker.requests.resolved import RequestedLoRA
from imagefleet_worker.settings import WorkerSettings
from tests.jobs import resolved
from tests.options import PLAIN

OFFLOAD = replace(PLAIN, offload="model")
CPU, META = torch.device("cpu"), torch.device("meta")
SETTINGS = WorkerSettings()


@pytest.fixture(autouse=True)
def _meta_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def do_nothing(device_type: str) -> None:
        """The meta device has no cache."""

    monkeypatch.setattr(pipeline_utils, "empty_device_cache", do_nothing)


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[DiffusionPipeline]:
    """The pipelines whose weights were moved off the device."""
    freed: list[DiffusionPipeline] = []

    def record(pipeline: DiffusionPipeline) -> None:
        freed.append(pipeline)

    monkeypatch.setattr(DiffusionPipeline, "maybe_free_model_hooks", record)
    return freed


def cache_of(models: ModelStore, device: torch.device = META) -> PipelineCache:
    options = PLAIN if device == CPU else OFFLOAD
    return PipelineCache(models, device, torch.float16, options, 2**40, 2**40, 0, 1)


def merged(models: ModelStore, pipelines: PipelineCache) -> list[Tensor]:
    """The demo's weights with a LoRA merged."""
    warm = pipelines.get(models.find("checkpoint", "demo"))
    lora = RequestedLoRA(models.find("lora", "demo-one"), 0.8, 0.8)
    LoRASwitcher(SETTINGS, pipelines, lambda: None).switch(warm, [lora])
    return list(warm.tensors())


def test_a_lora_is_merged_in_host_memory(demo_models: Path) -> None:
    """Its factors used to be on the GPU, the weights on the CPU, and every LoRA job failed."""
    models = ModelStore(demo_models)

    offloaded, plain = merged(models, cache_of(models)), merged(models, cache_of(models, CPU))

    assert all(torch.equal(one, other) for one, other in zip(offloaded, plain, strict=True))


def test_weights_are_offloaded_before_adapters_are_merged(
    demo_models: Path, freed: list[DiffusionPipeline]
) -> None:
    """Before a hires pass they used to be saved and changed on the GPU; the next job failed."""
    models = ModelStore(demo_models)
    pipelines = cache_of(models)
    warm = pipelines.get(models.find("checkpoint", "demo"))
    switcher = LoRASwitcher(SETTINGS, pipelines, lambda: None)
    lora = RequestedLoRA(models.find("lora", "demo-one"), 0.8, 0.8)

    switcher.switch(warm, [])
    assert freed == [], "nothing changes"
    switcher.switch(warm, [lora])
    assert freed == [warm.pipeline]


def test_a_checkpoint_is_offloaded_when_another_is_requested(
    demo_models: Path, freed: list[DiffusionPipeline]
) -> None:
    """The base model's UNet used to stay on the device beside the refiner's."""
    models = ModelStore(demo_models)
    pipelines = cache_of(models)
    base = pipelines.get(models.find("checkpoint", "demo"))
    pipelines.get(base.file)
    assert freed == []
    refiner = pipelines.get(models.find("checkpoint", "demo-xl"))
    assert freed == [base.pipeline]
    freed.clear()
    pipelines.get(base.file)
    assert refiner.pipeline in freed


def test_weights_are_offloaded_after_a_canceled_job(
    demo_models: Path, freed: list[DiffusionPipeline]
) -> None:
    """They used to stay beside those of the next job's checkpoint."""
    models = ModelStore(demo_models)
    renderer = build_renderer(SETTINGS, models, CPU)
    pipelines = renderer._pipelines  # pyright: ignore[reportPrivateUsage]
    pipelines._options = OFFLOAD  # pyright: ignore[reportPrivateUsage] — which needs a GPU

    def cancel(stage: Stage, step: int, steps: int) -> None:
        if stage == "denoise" and step == 1:
            freed.clear()
            raise JobCanceled("job")

    with pytest.raises(BatchCanceled):
        renderer.render([resolved(models, width=64, height=64)], BatchProgress([cancel]))
    assert freed == [pipelines.get(models.find("checkpoint", "demo")).pipeline]
