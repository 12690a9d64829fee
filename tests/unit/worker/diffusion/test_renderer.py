"""The renderer keeps pipeline weights intact across LoRA switches, and retries after evictions."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagefleet_shared.status import Stage
from imagefleet_worker import metrics
from imagefleet_worker.build import build_renderer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion import renderer as renderer_module
from imagefleet_worker.diffusion.renderer import DiffusionRenderer
from imagefleet_worker.diffusion.vae import decode_latents
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.settings import WorkerSettings
from tests.jobs import resolved

DAMAGED = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def models(demo_models: Path) -> ModelStore:
    return ModelStore(demo_models)


@pytest.fixture
def renderer(models: ModelStore) -> DiffusionRenderer:
    return build_renderer(WorkerSettings(verify_every=1), models, torch.device("cpu"))


@pytest.fixture
def one_layer(demo_models: Path) -> Iterator[str]:
    """A LoRA for one layer, which is not the damaged one."""
    tensors = load_file(demo_models / "loras/demo-one.safetensors")
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    of_layer = {key: tensor for key, tensor in tensors.items() if key.startswith(layer)}
    path = demo_models / "loras/one-layer.safetensors"
    save_file(of_layer, path)
    yield path.stem
    path.unlink()


def pipelines_of(renderer: DiffusionRenderer) -> PipelineCache:
    return renderer._pipelines  # pyright: ignore[reportPrivateUsage] — to damage its weights


def render(
    renderer: DiffusionRenderer, models: ModelStore, *loras: str, checkpoint: str = "demo"
) -> Image.Image:
    job = resolved(
        models,
        checkpoint=checkpoint,
        num_inference_steps=2,
        width=64,
        height=64,
        seed=1,
        loras=[{"name": name} for name in loras],
    )

    def ignore_progress(stage: Stage, step: int, steps: int) -> None:
        """Report nothing."""

    [[picture]] = renderer.render([job], BatchProgress([ignore_progress]))
    return picture


def test_added_conditioning_is_copied_to_the_device_once_per_pass(
    renderer: DiffusionRenderer, models: ModelStore
) -> None:
    """A copy at each evaluation synchronized with the GPU."""
    unet = pipelines_of(renderer).get(models.find("checkpoint", "demo-xl")).pipeline.unet
    time_ids: list[Tensor] = []

    def record(_: torch.nn.Module, args: object, kwargs: dict[str, dict[str, Tensor]]) -> None:
        time_ids.append(kwargs["added_cond_kwargs"]["time_ids"])

    unet.register_forward_pre_hook(record, with_kwargs=True)
    render(renderer, models, checkpoint="demo-xl")
    assert len(time_ids) == 2
    assert time_ids[0] is time_ids[1]


def test_a_lora_changes_the_picture_and_leaves_no_trace(
    renderer: DiffusionRenderer, models: ModelStore
) -> None:
    before = render(renderer, models)
    assert render(renderer, models, "demo-one").tobytes() != before.tobytes()
    assert render(renderer, models).tobytes() == before.tobytes()


def test_a_job_that_runs_out_of_memory_is_retried_after_evicting_idle_checkpoints(
    renderer: DiffusionRenderer, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = pipelines_of(renderer)
    idle = weakref.ref(pipelines.get(models.find("checkpoint", "demo-xl")).pipeline.unet)
    expected = render(renderer, models)

    def fail_until_evicted(warm: WarmPipeline, latents: Tensor, progress: BatchProgress) -> Tensor:
        if idle() is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode_latents(warm, latents, progress)

    monkeypatch.setattr(renderer_module, "decode_latents", fail_until_evicted)
    assert render(renderer, models).tobytes() == expected.tobytes()


def test_a_job_that_runs_out_of_memory_with_nothing_to_evict_is_not_retried(
    renderer: DiffusionRenderer, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fail(warm: WarmPipeline, latents: Tensor, progress: BatchProgress) -> Tensor:
        attempts.append(len(latents))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(renderer_module, "decode_latents", fail)
    with pytest.raises(torch.OutOfMemoryError):
        render(renderer, models)
    assert attempts == [1]


def test_corrupted_weights_are_detected_and_the_checkpoint_is_reloaded(
    renderer: DiffusionRenderer, models: ModelStore, one_layer: str
) -> None:
    before = render(renderer, models)
    render(renderer, models, "demo-one")
    render(renderer, models)
    file = models.find("checkpoint", "demo")
    damaged = pipelines_of(renderer).get(file)
    weight = damaged.pipeline.unet.get_parameter(DAMAGED)
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert render(renderer, models).tobytes() != before.tobytes()
    found = metrics.CORRUPTED._value.get()  # pyright: ignore[reportPrivateUsage]

    render(renderer, models, one_layer)
    after = render(renderer, models)

    assert after.tobytes() == before.tobytes()
    assert metrics.CORRUPTED._value.get() == found + 1  # pyright: ignore[reportPrivateUsage]
    assert pipelines_of(renderer).get(file) is not damaged
