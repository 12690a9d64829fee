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
from imagefleet_worker.build import make_studio
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion import renderer as generate
from imagefleet_worker.diffusion.renderer import Studio
from imagefleet_worker.diffusion.vae import decode
from imagefleet_worker.progress import Stages
from imagefleet_worker.settings import WorkerSettings
from tests.jobs import resolved

DAMAGED = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def models(demo_models: Path) -> ModelStore:
    return ModelStore(demo_models)


@pytest.fixture
def studio(models: ModelStore) -> Studio:
    return make_studio(WorkerSettings(verify_every=1), models, torch.device("cpu"))


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


def pipelines_of(studio: Studio) -> PipelineCache:
    return studio._pipelines  # pyright: ignore[reportPrivateUsage] — to damage what it keeps


def draw(studio: Studio, models: ModelStore, *loras: str, checkpoint: str = "demo") -> Image.Image:
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

    [[picture]] = studio.render([job], Stages([quietly]))
    return picture


def test_what_a_pass_tells_the_unet_beside_the_prompt_is_put_on_the_device_once(
    studio: Studio, models: ModelStore
) -> None:
    """A copy at each evaluation made a GPU wait for Python."""
    unet = pipelines_of(studio).get(models.find("checkpoint", "demo-xl")).pipeline.unet
    told: list[Tensor] = []

    def hear(_: torch.nn.Module, given: object, named: dict[str, dict[str, Tensor]]) -> None:
        told.append(named["added_cond_kwargs"]["time_ids"])

    unet.register_forward_pre_hook(hear, with_kwargs=True)
    draw(studio, models, checkpoint="demo-xl")
    assert len(told) == 2
    assert told[0] is told[1]


def test_a_lora_changes_the_picture_and_leaves_no_trace(studio: Studio, models: ModelStore) -> None:
    before = draw(studio, models)
    assert draw(studio, models, "demo-one").tobytes() != before.tobytes()
    assert draw(studio, models).tobytes() == before.tobytes()


def test_a_job_that_runs_out_of_memory_is_begun_again_without_idle_checkpoints(
    studio: Studio, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = pipelines_of(studio)
    idle = weakref.ref(pipelines.get(models.find("checkpoint", "demo-xl")).pipeline.unet)
    expected = draw(studio, models)

    def crowded(warm: WarmPipeline, latents: Tensor, stages: Stages) -> Tensor:
        if idle() is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(warm, latents, stages)

    monkeypatch.setattr(generate, "decode", crowded)
    assert draw(studio, models).tobytes() == expected.tobytes()


def test_a_job_that_is_too_large_for_the_device_alone_is_not_begun_again(
    studio: Studio, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(warm: WarmPipeline, latents: Tensor, stages: Stages) -> Tensor:
        tried.append(len(latents))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generate, "decode", full)
    with pytest.raises(torch.OutOfMemoryError):
        draw(studio, models)
    assert tried == [1]


def test_weights_that_are_not_as_saved_are_found_and_the_checkpoint_is_loaded_anew(
    studio: Studio, models: ModelStore, one_layer: str
) -> None:
    before = draw(studio, models)
    draw(studio, models, "demo-one")
    draw(studio, models)
    file = models.find("checkpoint", "demo")
    damaged = pipelines_of(studio).get(file)
    weight = damaged.pipeline.unet.get_parameter(DAMAGED)
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert draw(studio, models).tobytes() != before.tobytes()
    found = metrics.CORRUPTED._value.get()  # pyright: ignore[reportPrivateUsage]

    draw(studio, models, one_layer)
    after = draw(studio, models)

    assert after.tobytes() == before.tobytes()
    assert metrics.CORRUPTED._value.get() == found + 1  # pyright: ignore[reportPrivateUsage]
    assert pipelines_of(studio).get(file) is not damaged
