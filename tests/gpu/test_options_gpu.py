"""On a GPU: what each option draws is what no option draws, and graphs follow the weights."""

# Dynamo's counters have no public name.
# pyright: reportPrivateUsage=false

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch._dynamo.utils import counters

from imagefleet_worker.device.cuda_graphs import GraphedForward, capture_graphs, discard_graphs
from imagefleet_worker.device.graph_memory import GRAPH_MEMORY
from imagefleet_worker.device.memory import CudaMemory
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.settings import WorkerSettings
from tests.local_renderer import LocalRenderer, open_renderer
from tools.demo_models import demo_models

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT RUN: options of a GPU need CUDA, there is none here"
)

# In fp16 other kernels round otherwise, and the demo's random weights make the most of it.
MOST_DIFFERENCE = 16
CUDA = torch.device("cuda")


def open_on_gpu(models: Path, folder: Path, **settings: object) -> LocalRenderer:
    wanted = {
        **{"verify_every": 1, "preset": "balanced", "vae_tiling": False},
        **settings,
    }
    folder.mkdir(exist_ok=True)
    return open_renderer(models, folder, WorkerSettings.model_validate(wanted), CUDA)


@pytest.fixture(scope="module", name="plain")
def _plain(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRenderer:
    return open_on_gpu(demo_models, tmp_path_factory.mktemp("plain"), channels_last=False)


@pytest.fixture(scope="module", name="compiled")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize(
    "options",
    [
        {"channels_last": True},
        {"attention": "sliced"},
        {"cuda_graphs": True},
        pytest.param({"compile": True}, marks=pytest.mark.compiles),
        pytest.param({"compile": True, "cuda_graphs": True}, marks=pytest.mark.compiles),
        pytest.param({"preset": "fast"}, marks=pytest.mark.compiles),
        {"offload": "model"},
        {"offload": "sequential"},
        {"preset": "low_vram", "vae_tiling": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("checkpoint", ["demo", "demo-xl"])
def test_an_option_changes_no_picture(
    plain: LocalRenderer,
    demo_models: Path,
    compiled: Path,
    tmp_path: Path,
    options: dict[str, object],
    checkpoint: str,
) -> None:
    # Compiles for no other checkpoint, and nothing twice: the GPU check has little time.
    only = {"warm_up_checkpoints": (checkpoint,), "compile_cache_dir": compiled}
    renderer = open_on_gpu(demo_models, tmp_path / "options", **only, **options)
    lora = " <lora:demo-one:0.6>" if checkpoint == "demo" else ""
    graphs = counters["stats"]["unique_graphs"]

    for prompt in ("a red fox", f"a red fox{lora}", "a red fox", "a fox, " * 40):
        for count in (1, 2):
            drawn = renderer.render_all(prompt, checkpoint=checkpoint, num_images=count)
            wanted = plain.render_all(prompt, checkpoint=checkpoint, num_images=count)
            for picture, other in zip(drawn, wanted, strict=True):
                difference = np.asarray(picture, np.int16) - np.asarray(other, np.int16)
                assert abs(difference).max() <= MOST_DIFFERENCE

    assert counters["stats"]["unique_graphs"] == graphs


def test_from_a_step_to_the_next_evaluation_nothing_waits_for_the_gpu(
    plain: LocalRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, take_step = list[int](), BatchProgress.step

    def step(stages: BatchProgress) -> None:
        take_step(stages)
        if len(calls) < 4:
            torch.cuda.set_sync_debug_mode("error")

    def evaluated(_: torch.nn.Module, given: object, made: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
        calls.append(1)

    monkeypatch.setattr(BatchProgress, "step", step)
    hook = plain.warm("demo-xl").pipeline.unet.register_forward_hook(evaluated)
    try:
        plain.render("a red fox", checkpoint="demo-xl", scheduler="euler", num_inference_steps=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        hook.remove()
    assert len(calls) == 4


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_with_offload_loras_change_between_the_passes(
    plain: LocalRenderer, demo_models: Path, tmp_path: Path, offload: str
) -> None:
    """The second pass saved weights on the GPU, which the next job wrote to those on the CPU."""
    renderer = open_on_gpu(demo_models, tmp_path / "offload", offload=offload)
    hires = {"scale": 1.5, "prompt": "a fox <lora:demo-one:0.6>", "upscaler": "latent"}

    for fields in ({"hires": hires}, {}, {"hires": hires}):
        drawn = renderer.render("a red fox", **fields)
        wanted = plain.render("a red fox", **fields)
        difference = np.asarray(drawn, np.int16) - np.asarray(wanted, np.int16)
        assert abs(difference).max() <= MOST_DIFFERENCE
    parts = renderer.warm("demo").pipeline
    for module in (parts.unet, parts.vae, parts.text_encoder):
        assert next(module.parameters()).device.type == "cpu", "nothing runs"


def test_a_graph_follows_weights_in_place_and_is_recorded_anew_where_they_move() -> None:
    unet = demo_models_unet()
    weights, eager = cast("torch.nn.Module", unet), unet.forward
    capture_graphs(unet)
    recorded = vars(unet)["forward"]
    assert isinstance(recorded, GraphedForward)
    given = [inputs(rows) for rows in (2, 4)]

    def same() -> bool:
        # Thrice: the first call runs, the second records, the third replays.
        return all(
            torch.allclose(unet(*one, return_dict=False)[0], eager(*one, return_dict=False)[0])
            for one in given
            for _ in range(3)
        )

    with torch.no_grad():
        assert same()
        assert recorded.num_graphs == 2
        unet.get_parameter("conv_in.weight").mul_(1.5)
        assert same()
        weights.cpu()
        held = torch.empty(2**24, device=CUDA)
        weights.cuda()
        assert same()
        assert recorded.num_graphs == 2
        del held


@pytest.mark.whole_card
def test_memory_of_graphs_is_no_batchs_and_comes_back_when_they_are_forgotten() -> None:
    unet = demo_models_unet()
    capture_graphs(unet)
    room = CudaMemory(CUDA)
    given, peaks, free = inputs(8), list[int | None](), list[int]()
    with torch.no_grad():
        for _ in range(3):
            free.append(room.free_bytes())
            room.begin_batch()
            for _ in range(2):
                unet(*given, return_dict=False)
            peaks.append(room.peak_bytes())

    assert peaks[0], "it ran and was recorded"
    assert peaks[1:] == [None, None], "it was replayed alone, in memory that it had"
    kept = GRAPH_MEMORY.pool_bytes
    assert kept > 0
    torch.cuda.empty_cache()
    assert free[0] - room.free_bytes() >= kept, "what graphs keep is not free"
    assert discard_graphs(unet)
    torch.cuda.empty_cache()
    assert room.free_bytes() >= free[0] - 2**22, "but for workspaces of libraries"
    assert GRAPH_MEMORY.pool_bytes == 0


def test_what_a_graph_gave_is_not_overwritten_by_the_next_call() -> None:
    unet = demo_models_unet()
    capture_graphs(unet)
    one, other = inputs(2), inputs(2)
    with torch.no_grad():
        for _ in range(2):
            unet(*one, return_dict=False)
        first = unet(*one, return_dict=False)[0]
        kept = first.clone()
        unet(*other, return_dict=False)

    assert torch.equal(first, kept)


def demo_models_unet() -> UNet2DConditionModel:
    unet = demo_models("sd1", seed=0)["unet"].cuda().requires_grad_(False)
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(rows, 4, 16, 16, device=CUDA),
        torch.tensor(500.0, device=CUDA),
        torch.randn(rows, 77, 96, device=CUDA),
    )
