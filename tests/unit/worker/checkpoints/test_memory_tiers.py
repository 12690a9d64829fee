"""Evicted pipelines move to host memory and return to the device with the same bits."""

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints import memory_tiers as tiers_module
from imagefleet_worker.checkpoints.memory_tiers import MemoryTiers
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.device.cuda_graphs import GraphedForward
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.device.graph_memory import GRAPH_MEMORY
from imagefleet_worker.device.transfer import move
from tests.options import PLAIN
from tests.random_adapters import linear_targets, random_lora
from tools.make_demo_checkpoint import write_demo_checkpoint

CPU = torch.device("cpu")
PLENTY = 2**40

Load = Callable[[str], WarmPipeline]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "checkpoints").mkdir()
    for seed, name in enumerate("abc"):
        write_demo_checkpoint(folder / f"checkpoints/{name}.safetensors", "sd1", seed=seed)
    return folder


@pytest.fixture
def load(folder: Path) -> Load:
    """Loads a checkpoint again on every call."""

    def load(name: str) -> WarmPipeline:
        store = ModelStore(folder)
        cache = PipelineCache(store, CPU, torch.float32, PLAIN, PLENTY, PLENTY, PLENTY, 1)
        return cache.get(store.find("checkpoint", name))

    return load


@pytest.fixture
def dropped() -> list[str]:
    return []


def tiers_of(dropped: list[str], device_bytes: int, host_bytes: int) -> MemoryTiers:
    """Tiers with the CPU as both device and host; moves still copy."""

    def on_drop(file: ModelFile) -> None:
        dropped.append(file.name)

    return MemoryTiers(CPU, CPU, device_bytes=device_bytes, host_bytes=host_bytes, on_drop=on_drop)


def lora(warm: WarmPipeline) -> list[ScaledAdapter]:
    modules: dict[Component, torch.nn.Module] = {"unet": warm.pipeline.unet}
    targets = linear_targets("unet", warm.pipeline.unet)
    adapter = random_lora("lora", modules, targets, rank=4, seed=0)
    return [ScaledAdapter(adapter=adapter, unet_scale=1, text_encoder_scale=1)]


def bits(warm: WarmPipeline) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in warm.tensors()]


def same(warm: WarmPipeline, expected: list[Tensor]) -> bool:
    return all(
        torch.equal(tensor, other) for tensor, other in zip(warm.tensors(), expected, strict=True)
    )


def test_a_pipeline_returns_with_the_checkpoints_bits_in_the_same_tensors(
    load: Load, dropped: list[str]
) -> None:
    first, second = load("a"), load("b")
    base, tensors = bits(first), [id(tensor) for tensor in first.tensors()]
    addresses = {tensor.data_ptr() for tensor in first.tensors()}
    strides = [tensor.stride() for tensor in first.tensors()]
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(first)
    first.merged.switch(lora(first))
    assert not same(first, base)

    tiers.add(second)
    assert same(first, base)
    assert first.merged.saved_bytes.device == first.merged.cached_bytes == 0
    assert not addresses & {tensor.data_ptr() for tensor in first.tensors()}
    assert tiers.get(first.file) is first
    assert same(first, base)
    assert [id(tensor) for tensor in first.tensors()] == tensors
    assert [tensor.stride() for tensor in first.tensors()] == strides
    assert dropped == []


def test_adapters_merge_and_unmerge_in_a_pipeline_that_returned(
    load: Load, dropped: list[str]
) -> None:
    first = load("a")
    base = bits(first)
    first.merged.switch(lora(first))
    merged = bits(first)
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(first)
    tiers.add(load("b"))
    assert tiers.get(first.file) is first

    first.merged.switch(lora(first))
    assert same(first, merged)
    first.merged.switch(())
    assert same(first, base)


def test_the_host_tier_drops_the_least_recently_used(load: Load, dropped: list[str]) -> None:
    first, second, third = load("a"), load("b"), load("c")
    size_bytes = first.size_bytes
    tiers = tiers_of(dropped, device_bytes=size_bytes, host_bytes=size_bytes)
    for warm in (first, second, third):
        tiers.add(warm)

    assert dropped == ["a"]
    assert tiers.get(first.file) is None
    assert tiers.get(second.file) is second
    assert tiers.get(third.file) is third


def test_a_pipeline_that_does_not_fit_the_host_tier_is_freed(
    load: Load, dropped: list[str]
) -> None:
    warm = load("a")
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=warm.size_bytes - 1)
    tiers.add(warm)
    unet = weakref.ref(warm.pipeline.unet)
    del warm
    tiers.add(load("b"))

    assert dropped == ["a"]
    assert unet() is None


def test_a_pipeline_with_corrupted_weights_is_dropped(load: Load, dropped: list[str]) -> None:
    warm = load("a")
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(warm)
    warm.merged.switch(lora(warm))
    warm.merged.switch(())
    target = linear_targets("unet", warm.pipeline.unet)[0]
    with torch.no_grad():
        warm.pipeline.unet.get_parameter(target.parameter).view(-1)[0] += 1
    tiers.add(load("b"))

    assert dropped == ["a"]
    assert tiers.get(warm.file) is None


def tiers_on_full_device(monkeypatch: pytest.MonkeyPatch, dropped: list[str]) -> MemoryTiers:
    """Tiers whose device fits a single pipeline, although their limit is higher."""
    device = torch.device("cpu", 0)
    tiers = MemoryTiers(device, CPU, device_bytes=PLENTY, host_bytes=PLENTY, on_drop=lambda _: None)

    def move_or_run_out(tensors: Iterable[Tensor], target: torch.device) -> None:
        if target == device and tiers.pipelines_on_device():
            raise torch.OutOfMemoryError("CUDA out of memory")
        move(tensors, target)

    monkeypatch.setattr(tiers_module, "move", move_or_run_out)
    return tiers


def test_a_pipeline_that_returns_to_a_full_device_evicts_others(
    load: Load, dropped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle pipelines used to stay, and each job of the returning one failed."""
    first, second = load("a"), load("b")
    tiers = tiers_on_full_device(monkeypatch, dropped)
    tiers.add(first)
    tiers.add(second)
    assert tiers.evict_idle()
    assert tiers.pipelines_on_device() == [second]

    assert tiers.get(first.file) is first
    assert tiers.pipelines_on_device() == [first]
    assert tiers.get(second.file) is second
    assert dropped == []


def test_memory_of_a_failed_attempt_is_freed_before_the_retry(
    load: Load, dropped: list[str]
) -> None:
    first = load("a")
    tiers = tiers_of(dropped, device_bytes=PLENTY, host_bytes=0)
    tiers.add(first)
    attempts: list[weakref.ref[Tensor]] = []

    def allocate() -> None:
        assert [one() for one in attempts] == [None] * len(attempts)
        half = torch.empty(1)
        attempts.append(weakref.ref(half))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ModelDoesNotFit, match=f"cpu has no room for {first.file.name}"):
        tiers.evict_until_it_fits(first.file, allocate)
    assert len(attempts) == 2, "once beside the other, once alone"
    assert dropped == ["a"]


@pytest.mark.parametrize("evicted", [True, False])
def test_graphs_are_discarded_on_eviction_and_when_memory_runs_out(
    load: Load, dropped: list[str], evicted: bool
) -> None:
    """They used to occupy gigabytes on the device for weights that were no longer there."""
    warm = load("a")
    graphed = GraphedForward(warm.pipeline.unet)
    vars(warm.pipeline.unet)["forward"] = graphed
    graphs: dict[str, object] = graphed._graphs  # pyright: ignore  — capturing needs CUDA
    graphs["shape"] = object()
    GRAPH_MEMORY.set_pool_bytes(graphed, 1000)
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(warm)

    if evicted:
        tiers.add(load("b"))
    else:
        assert tiers.evict_idle()
        assert not tiers.evict_idle(), "nothing is left to evict"
    assert graphed.num_graphs == 0
    assert GRAPH_MEMORY.pool_bytes == 0


def test_a_dropped_pipeline_is_in_neither_tier(load: Load, dropped: list[str]) -> None:
    first, second = load("a"), load("b")
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(first)
    tiers.add(second)
    tiers.drop(first.file)
    tiers.drop(second.file)

    assert dropped == ["a", "b"]
    assert tiers.get(first.file) is tiers.get(second.file) is None
