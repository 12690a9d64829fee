"""Pipelines that leave the device rest in host memory and come back with the same bits."""

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
from imagefleet_worker.device.errors import NoRoomForWeights
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
    """Loads a checkpoint anew with every call."""

    def load(name: str) -> WarmPipeline:
        store = ModelStore(folder)
        cache = PipelineCache(store, CPU, torch.float32, PLAIN, PLENTY, PLENTY, PLENTY, 1)
        return cache.get(store.find("checkpoint", name))

    return load


@pytest.fixture
def dropped() -> list[str]:
    return []


def tiers_of(dropped: list[str], device_bytes: int, host_bytes: int) -> MemoryTiers:
    """The CPU stands for both; what moves is copied all the same."""

    def hear(file: ModelFile) -> None:
        dropped.append(file.name)

    return MemoryTiers(CPU, CPU, device_bytes=device_bytes, host_bytes=host_bytes, on_drop=hear)


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


def test_a_pipeline_comes_back_with_the_checkpoints_bits_in_the_same_tensors(
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
    assert first.merged.saved_bytes.device == first.merged.copied_bytes == 0
    assert not addresses & {tensor.data_ptr() for tensor in first.tensors()}
    assert tiers.get(first.file) is first
    assert same(first, base)
    assert [id(tensor) for tensor in first.tensors()] == tensors
    assert [tensor.stride() for tensor in first.tensors()] == strides
    assert dropped == []


def test_adapters_go_on_and_off_a_pipeline_that_came_back_as_before(
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


def test_host_memory_keeps_the_last_used_and_drops_the_others(
    load: Load, dropped: list[str]
) -> None:
    first, second, third = load("a"), load("b"), load("c")
    size_bytes = first.size_bytes
    tiers = tiers_of(dropped, device_bytes=size_bytes, host_bytes=size_bytes)
    for warm in (first, second, third):
        tiers.add(warm)

    assert dropped == ["a"]
    assert tiers.get(first.file) is None
    assert tiers.get(second.file) is second
    assert tiers.get(third.file) is third


def test_what_host_memory_has_no_room_for_is_freed(load: Load, dropped: list[str]) -> None:
    warm = load("a")
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=warm.size_bytes - 1)
    tiers.add(warm)
    unet = weakref.ref(warm.pipeline.unet)
    del warm
    tiers.add(load("b"))

    assert dropped == ["a"]
    assert unet() is None


def test_weights_that_do_not_come_back_from_an_adapter_are_not_kept(
    load: Load, dropped: list[str]
) -> None:
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


def on_a_card_for_one(monkeypatch: pytest.MonkeyPatch, dropped: list[str]) -> MemoryTiers:
    """Tiers whose device has room for one pipeline, though they do not know it."""
    device = torch.device("cpu", 0)
    tiers = MemoryTiers(device, CPU, device_bytes=PLENTY, host_bytes=PLENTY, on_drop=lambda _: None)

    def card(tensors: Iterable[Tensor], target: torch.device) -> None:
        if target == device and tiers.on_device():
            raise torch.OutOfMemoryError("CUDA out of memory")
        move(tensors, target)

    monkeypatch.setattr(tiers_module, "move", card)
    return tiers


def test_a_pipeline_that_comes_back_to_a_full_device_has_others_leave(
    load: Load, dropped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stayed, idle, and each job of the pipeline failed."""
    first, second = load("a"), load("b")
    tiers = on_a_card_for_one(monkeypatch, dropped)
    tiers.add(first)
    tiers.add(second)
    assert tiers.evict_idle()
    assert tiers.on_device() == [second]

    assert tiers.get(first.file) is first
    assert tiers.on_device() == [first]
    assert tiers.get(second.file) is second
    assert dropped == []


def test_what_ran_out_of_memory_is_freed_before_the_next_try(
    load: Load, dropped: list[str]
) -> None:
    first = load("a")
    tiers = tiers_of(dropped, device_bytes=PLENTY, host_bytes=0)
    tiers.add(first)
    tried: list[weakref.ref[Tensor]] = []

    def take() -> None:
        assert [one() for one in tried] == [None] * len(tried)
        half = torch.empty(1)
        tried.append(weakref.ref(half))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(NoRoomForWeights, match=f"cpu has no room for {first.file.name}"):
        tiers.evict_until_it_fits(first.file, take)
    assert len(tried) == 2, "once beside the other, once alone"
    assert dropped == ["a"]


@pytest.mark.parametrize("leaves", [True, False])
def test_graphs_are_forgotten_where_weights_leave_or_memory_runs_out(
    load: Load, dropped: list[str], leaves: bool
) -> None:
    """They kept gigabytes on the device for weights that were no longer there."""
    warm = load("a")
    graphed = GraphedForward(warm.pipeline.unet)
    vars(warm.pipeline.unet)["forward"] = graphed
    recordings: dict[str, object] = graphed._recordings  # pyright: ignore  — CUDA alone records
    recordings["shape"] = object()
    GRAPH_MEMORY.keep(graphed, 1000)
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(warm)

    if leaves:
        tiers.add(load("b"))
    else:
        assert tiers.evict_idle()
        assert not tiers.evict_idle(), "there is nothing more"
    assert graphed.recordings == 0
    assert GRAPH_MEMORY.kept_bytes == 0


def test_a_dropped_pipeline_is_in_neither_tier(load: Load, dropped: list[str]) -> None:
    first, second = load("a"), load("b")
    tiers = tiers_of(dropped, device_bytes=1, host_bytes=PLENTY)
    tiers.add(first)
    tiers.add(second)
    tiers.drop(first.file)
    tiers.drop(second.file)

    assert dropped == ["a", "b"]
    assert tiers.get(first.file) is tiers.get(second.file) is None
