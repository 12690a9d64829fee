"""The studio keeps a pipeline's weights true, whatever adapters come and go."""

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
    """A LoRA for one layer, another one than that which gets damaged."""
    tensors = load_file(demo_models / "loras/demo-one.safetensors")
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(layer)}
    path = demo_models / "loras/one-layer.safetensors"
    save_file(own, path)
    yield path.stem
    path.unlink()


def pipelines_of(renderer: DiffusionRenderer) -> PipelineCache:
    return renderer._pipelines  # pyright: ignore[reportPrivateUsage] — to damage what it keeps


def draw(
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

    def quietly(stage: Stage, step: int, steps: int) -> None:
        """Tell nobody."""

    [[picture]] = renderer.render([job], BatchProgress([quietly]))
    return picture


def test_what_a_pass_tells_the_unet_beside_the_prompt_is_put_on_the_device_once(
    renderer: DiffusionRenderer, models: ModelStore
) -> None:
    """A copy at each evaluation made a GPU wait for Python."""
    unet = pipelines_of(renderer).get(models.find("checkpoint", "demo-xl")).pipeline.unet
    told: list[Tensor] = []

    def hear(_: torch.nn.Module, given: object, named: dict[str, dict[str, Tensor]]) -> None:
        told.append(named["added_cond_kwargs"]["time_ids"])

    unet.register_forward_pre_hook(hear, with_kwargs=True)
    draw(renderer, models, checkpoint="demo-xl")
    assert len(told) == 2
    assert told[0] is told[1]


def test_a_lora_changes_the_picture_and_leaves_no_trace(
    renderer: DiffusionRenderer, models: ModelStore
) -> None:
    before = draw(renderer, models)
    assert draw(renderer, models, "demo-one").tobytes() != before.tobytes()
    assert draw(renderer, models).tobytes() == before.tobytes()


def test_a_job_that_runs_out_of_memory_is_begun_again_without_idle_checkpoints(
    renderer: DiffusionRenderer, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = pipelines_of(renderer)
    idle = weakref.ref(pipelines.get(models.find("checkpoint", "demo-xl")).pipeline.unet)
    expected = draw(renderer, models)

    def crowded(warm: WarmPipeline, latents: Tensor, progress: BatchProgress) -> Tensor:
        if idle() is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode_latents(warm, latents, progress)

    monkeypatch.setattr(renderer_module, "decode_latents", crowded)
    assert draw(renderer, models).tobytes() == expected.tobytes()


def test_a_job_that_is_too_large_for_the_device_alone_is_not_begun_again(
    renderer: DiffusionRenderer, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(warm: WarmPipeline, latents: Tensor, progress: BatchProgress) -> Tensor:
        tried.append(len(latents))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(renderer_module, "decode_latents", full)
    with pytest.raises(torch.OutOfMemoryError):
        draw(renderer, models)
    assert tried == [1]


def test_weights_that_are_not_as_saved_are_found_and_the_checkpoint_is_loaded_anew(
    renderer: DiffusionRenderer, models: ModelStore, one_layer: str
) -> None:
    before = draw(renderer, models)
    draw(renderer, models, "demo-one")
    draw(renderer, models)
    file = models.find("checkpoint", "demo")
    damaged = pipelines_of(renderer).get(file)
    weight = damaged.pipeline.unet.get_parameter(DAMAGED)
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert draw(renderer, models).tobytes() != before.tobytes()
    found = metrics.CORRUPTED._value.get()  # pyright: ignore[reportPrivateUsage]

    draw(renderer, models, one_layer)
    after = draw(renderer, models)

    assert after.tobytes() == before.tobytes()
    assert metrics.CORRUPTED._value.get() == found + 1  # pyright: ignore[reportPrivateUsage]
    assert pipelines_of(renderer).get(file) is not damaged
