"""Compiled blocks render as eager ones do, and after warm-up nothing is compiled."""

# Dynamo's counters are not public.
# pyright: reportPrivateUsage=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.device.compile import why_no_compiler
from imagefleet_worker.settings import WorkerSettings
from tests.local_renderer import LocalRenderer, mask, open_renderer, photo
from tests.tiny_models import write_tiny_models

pytestmark = pytest.mark.skipif(
    why_no_compiler() is not None, reason=f"NOT RUN: compiled blocks; {why_no_compiler()}"
)

_LONG = ", ".join(f"a red fox number {number} in the snow" for number in range(12))

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one adapter": {"prompt": "a fox <lora:demo-one:0.8>"},
    "another": {"prompt": "a fox <lora:demo-two:0.5>"},
    "both": {"prompt": "a fox <lora:demo-one:0.3> <lora:demo-two:0.6>"},
    "embedding": {"prompt": "a fox, demo-token"},
    "embedding in the negative": {"negative_prompt": "demo-token"},
    "two windows": {"prompt": _LONG[:300]},
    "four windows": {"prompt": _LONG},
    "long negative": {"negative_prompt": _LONG},
    "parts": {"prompt": "a fox AND snow :0.5"},
    "two images": {"num_images": 2},
    "three images": {"num_images": 3},
    "four images": {"num_images": 4},
    "nine images": {"num_images": 9, "num_inference_steps": 1},
    "unguided": {"guidance_scale": 1.0},
    "two unguided": {"guidance_scale": 1.0, "num_images": 2},
    "wide": {"width": 128},
    "odd latents": {"width": 72, "height": 88},
    "hires": {"hires": {"scale": 1.5, "upscaler": "latent", "num_inference_steps": 2}},
    "other checkpoint": {"checkpoint": "other"},
}


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_tiny_models(root)
    return root


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def settings(cache_dir: Path) -> WorkerSettings:
    return WorkerSettings(
        compile=True,
        # As on a GPU, where both are on.
        channels_last=True,
        compile_cache_dir=cache_dir,
        warm_up_checkpoints=("demo",),
        warm_up_sizes=((64, 64, 1),),
        verify_every=1,
    )


@pytest.fixture(scope="module")
def compiled(
    tiny_models: Path, tmp_path_factory: pytest.TempPathFactory, settings: WorkerSettings
) -> Iterator[LocalRenderer]:
    """A warmed-up renderer; any further compilation fails the test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            patch.setenv(name, "")
        torch._dynamo.reset()
        counters.clear()
        renderer = open_renderer(tiny_models, tmp_path_factory.mktemp("compiling"), settings)
        with torch._dynamo.config.patch(error_on_recompile=True):
            yield renderer
        torch._dynamo.reset()


@pytest.fixture(scope="module")
def eager(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRenderer:
    return open_renderer(tiny_models, tmp_path_factory.mktemp("eager"), WorkerSettings())


@pytest.mark.parametrize("name", REQUESTS)
def test_compiled_images_equal_eager_ones_without_recompilation(
    compiled: LocalRenderer, eager: LocalRenderer, name: str
) -> None:
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0

    images = compiled.render_all(**REQUESTS[name])

    assert counters["stats"]["unique_graphs"] == graphs
    expected = eager.render_all(**REQUESTS[name])
    assert len(images) == len(expected)
    for image, other in zip(images, expected, strict=True):
        difference = np.asarray(image, dtype=np.int16) - np.asarray(other, dtype=np.int16)
        assert abs(difference).max() <= 1


def test_img2img_and_inpainting_compile_nothing(compiled: LocalRenderer) -> None:
    graphs = counters["stats"]["unique_graphs"]
    image, masked = compiled.upload(photo()), compiled.upload(mask())

    compiled.render(image=image, strength=0.5)
    compiled.render(image=image, inpaint={"mask_image": masked}, strength=0.5)

    assert counters["stats"]["unique_graphs"] == graphs


def test_adapters_change_compiled_images_and_leave_no_trace(compiled: LocalRenderer) -> None:
    before = compiled.render().tobytes()

    assert compiled.render("a red fox <lora:demo-one:0.8>").tobytes() != before
    assert compiled.render().tobytes() == before


def test_compiled_modules_keep_the_names_and_addresses_of_their_weights(
    compiled: LocalRenderer, eager: LocalRenderer
) -> None:
    def weights_of(renderer: LocalRenderer) -> dict[str, torch.nn.Parameter]:
        return dict(warm(renderer).pipeline.unet.named_parameters())

    addresses = {name: weight.data_ptr() for name, weight in weights_of(compiled).items()}
    assert list(addresses) == list(weights_of(eager))

    compiled.render("a red fox <lora:demo-one:0.8>")

    assert {name: weight.data_ptr() for name, weight in weights_of(compiled).items()} == addresses


def test_a_restarted_worker_loads_compiled_code_from_the_cache(
    compiled: LocalRenderer, tiny_models: Path, settings: WorkerSettings, tmp_path: Path
) -> None:
    assert compiled.render()
    # Simulates a new process.
    torch._dynamo.reset()
    counters.clear()

    with torch._dynamo.config.patch(error_on_recompile=False):
        again = open_renderer(tiny_models, tmp_path, settings)

    assert counters["inductor"]["fxgraph_cache_hit"] > 0
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    assert again.render().tobytes() == compiled.render().tobytes()


def warm(renderer: LocalRenderer) -> WarmPipeline:
    renderer.render()
    return renderer.warm("demo")
