"""Warm pipelines: loaded once, evicted by bytes, set up as the options say."""

import gc
import os
import socket
import weakref
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from imagefleet_shared.errors import CorruptFile, UnknownCheckpoint
from imagefleet_worker.models.pipelines import PipelineCache
from imagefleet_worker.models.single_file import load_single_file
from imagefleet_worker.models.store import ModelStore
from imagefleet_worker.presets import Options
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


def test_a_pipeline_is_loaded_once_and_then_warm(models: Path) -> None:
    cache = cache_of(models)
    warm = cache.get("a")

    assert cache.get("a") is warm
    assert (warm.file.name, warm.family, warm.native_size_px) == ("a", "sd1", 128)
    assert (warm.device, warm.dtype) == (CPU, torch.float32)
    assert warm.sha256 == ModelStore(models).sha256(ModelStore(models).find("checkpoint", "a"))
    weights = sum(p.nbytes for p in warm.pipeline.unet.parameters())
    assert weights < warm.size_bytes < 3 * weights


def test_the_least_recently_used_pipeline_makes_room(models: Path) -> None:
    size_bytes = cache_of(models).get("a").size_bytes
    cache = cache_of(models, budget_bytes=int(2.5 * size_bytes))
    first, second = cache.get("a"), cache.get("b")
    assert cache.get("a") is first

    cache.get("c")
    assert cache.get("a") is first
    assert cache.get("b") is not second


def test_an_evicted_pipeline_is_freed(models: Path) -> None:
    cache = cache_of(models, budget_bytes=1)
    unet = weakref.ref(cache.get("a").pipeline.unet)
    cache.get("b")

    assert unet() is None


def test_a_pipeline_larger_than_the_budget_is_still_returned_warm(models: Path) -> None:
    cache = cache_of(models, budget_bytes=1)

    assert cache.get("a") is cache.get("a")


def test_a_file_that_was_replaced_is_loaded_anew(models: Path) -> None:
    cache = cache_of(models)
    before = cache.get("a")
    path = models / "checkpoints" / "a.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    after = cache.get("a")
    assert after is not before
    old = weakref.ref(before.pipeline.unet)
    del before
    gc.collect()
    assert old() is None
    assert cache.get("a") is after


def test_a_failed_load_leaves_the_others_warm(models: Path) -> None:
    cache = cache_of(models)
    warm = cache.get("a")
    (models / "checkpoints" / "b.safetensors").write_bytes(b"not a model")

    with pytest.raises(CorruptFile):
        cache.get("b")
    with pytest.raises(UnknownCheckpoint):
        cache.get("../a")
    assert cache.get("a") is warm


def test_a_diffusers_folder_gives_the_same_pipeline_with_no_network(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a folder must load with no network")

    single = load_single_file(models / "checkpoints" / "a.safetensors", CPU, torch.float32)
    single.pipeline.save_pretrained(models / "checkpoints" / "folder")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    warm = cache_of(models).get("folder")

    assert (warm.family, warm.native_size_px, warm.sha256) == ("sd1", 128, None)
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
        cache_of(models).get("pickled")


def test_the_demo_checkpoint_draws_a_picture_that_follows_seed_and_prompt(models: Path) -> None:
    pipeline = cache_of(models).get("a").pipeline

    def draw(prompt: str, seed: int) -> torch.Tensor:
        # Any: diffusers declares pictures only, though it returns tensors for "pt".
        output: Any = pipeline(
            prompt,
            num_inference_steps=5,
            width=128,
            height=128,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        )
        return output.images

    picture = draw("a cat", 1)
    assert picture.shape == (1, 3, 128, 128)
    assert picture.isfinite().all()
    assert picture.std() > 0.1
    assert torch.equal(picture, draw("a cat", 1))
    assert not torch.allclose(picture, draw("a cat", 2), atol=0.1)
    assert not torch.allclose(picture, draw("a red car", 1), atol=0.1)
