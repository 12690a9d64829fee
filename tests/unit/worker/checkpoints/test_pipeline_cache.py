"""Pipelines are loaded once and evicted by bytes."""

import gc
import os
import socket
import weakref
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints import pipeline_cache as pipeline_cache_module
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.single_file import LoadedCheckpoint, load_single_file
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.device.presets import Options
from tests.options import PLAIN
from tools.make_demo_checkpoint import write_demo_checkpoint

CPU = torch.device("cpu")
PLENTY = 2**40


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("demo") / "demo.safetensors"
    write_demo_checkpoint(path, "sd1", seed=0)
    return path.read_bytes()


@pytest.fixture
def models(demo: bytes, tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / f"{name}.safetensors").write_bytes(demo)
    return tmp_path


def cache_of(models: Path, budget_bytes: int = PLENTY, options: Options = PLAIN) -> PipelineCache:
    return PipelineCache(ModelStore(models), CPU, torch.float32, options, budget_bytes, 2**40, 0, 1)


def get(cache: PipelineCache, models: Path, name: str) -> WarmPipeline:
    return cache.get(ModelStore(models).find("checkpoint", name))


def test_a_pipeline_is_loaded_once_and_then_warm(models: Path) -> None:
    cache = cache_of(models)
    warm = get(cache, models, "a")

    assert get(cache, models, "a") is warm
    assert (warm.file.name, warm.family, warm.native_size_px) == ("a", "sd1", 128)
    assert (warm.device, warm.dtype) == (CPU, torch.float32)
    weights = sum(p.nbytes for p in warm.pipeline.unet.parameters())
    assert weights < warm.size_bytes < 3 * weights


def test_the_least_recently_used_pipeline_is_evicted(models: Path) -> None:
    size_bytes = get(cache_of(models), models, "a").size_bytes
    cache = cache_of(models, budget_bytes=int(2.5 * size_bytes))
    first, second = get(cache, models, "a"), get(cache, models, "b")
    assert get(cache, models, "a") is first

    get(cache, models, "c")
    assert get(cache, models, "a") is first
    assert get(cache, models, "b") is not second


def test_an_evicted_pipeline_is_freed(models: Path) -> None:
    cache = cache_of(models, budget_bytes=1)
    unet = weakref.ref(get(cache, models, "a").pipeline.unet)
    get(cache, models, "b")

    assert unet() is None


def test_a_pipeline_larger_than_the_budget_is_still_returned_warm(models: Path) -> None:
    cache = cache_of(models, budget_bytes=1)

    assert get(cache, models, "a") is get(cache, models, "a")


def test_a_replaced_file_is_loaded_again(models: Path) -> None:
    cache = cache_of(models)
    before = get(cache, models, "a")
    path = models / "checkpoints" / "a.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    after = get(cache, models, "a")
    assert after is not before
    old = weakref.ref(before.pipeline.unet)
    del before
    gc.collect()
    assert old() is None
    assert get(cache, models, "a") is after


def test_loading_onto_a_full_device_evicts_others(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the limit nothing used to be evicted, and all jobs of the second checkpoint failed."""
    cache = cache_of(models)
    unet = weakref.ref(get(cache, models, "a").pipeline.unet)

    def load_or_run_out(path: Path, device: torch.device, dtype: torch.dtype) -> LoadedCheckpoint:
        if unet() is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load_single_file(path, device, dtype)

    monkeypatch.setattr(pipeline_cache_module, "load_single_file", load_or_run_out)
    assert get(cache, models, "b").file.name == "b"


def test_a_failed_load_leaves_the_others_warm(models: Path) -> None:
    cache = cache_of(models)
    warm = get(cache, models, "a")
    (models / "checkpoints" / "b.safetensors").write_bytes(b"not a model")

    with pytest.raises(CorruptFile):
        get(cache, models, "b")
    assert get(cache, models, "a") is warm


def test_a_diffusers_folder_gives_the_same_pipeline_with_no_network(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a folder must load with no network")

    single = load_single_file(models / "checkpoints" / "a.safetensors", CPU, torch.float32)
    single.pipeline.save_pretrained(models / "checkpoints" / "folder")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    warm = get(cache_of(models), models, "folder")

    assert (warm.family, warm.native_size_px) == ("sd1", 128)
    weights = warm.pipeline.unet.state_dict()
    for key, tensor in single.pipeline.unet.state_dict().items():
        assert torch.equal(weights[key], tensor)
    assert not any(parameter.requires_grad for parameter in warm.pipeline.unet.parameters())


def test_a_diffusers_folder_without_safetensors_is_refused(models: Path) -> None:
    folder = models / "checkpoints" / "pickled"
    single = load_single_file(models / "checkpoints" / "a.safetensors", CPU, torch.float32)
    single.pipeline.save_pretrained(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )

    with pytest.raises(CorruptFile, match="pickled cannot be loaded"):
        get(cache_of(models), models, "pickled")


def test_the_demo_checkpoint_renders_an_image_that_depends_on_seed_and_prompt(models: Path) -> None:
    pipeline = get(cache_of(models), models, "a").pipeline

    def render(prompt: str, seed: int) -> torch.Tensor:
        # Any: diffusers declares PIL images only, though it returns tensors for "pt".
        output: Any = pipeline(
            prompt,
            num_inference_steps=5,
            width=128,
            height=128,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        )
        return output.images

    image = render("a cat", 1)
    assert image.shape == (1, 3, 128, 128)
    assert image.isfinite().all()
    assert image.std() > 0.1
    assert torch.equal(image, render("a cat", 1))
    assert not torch.allclose(image, render("a cat", 2), atol=0.1)
    assert not torch.allclose(image, render("a red car", 1), atol=0.1)
