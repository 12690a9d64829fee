"""On a GPU: where originals go, how long a switch takes, and that compiled code and graphs stay."""

# Dynamo's counters have no public name.
# pyright: reportPrivateUsage=false

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from imagefleet_worker.adapters.delta import Adapter, Component, Target
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.weights.families import Family
from tests.full_size import full_size_modules
from tests.random_adapters import LowRank, linear_targets, random_lora
from tests.weights import Modules, differing, small_modules, tensors_of

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT RUN: switches on a GPU need CUDA, there is none here"
)

_NO_LIMIT = 2**60


def _on_gpu(modules: Modules) -> dict[Component, nn.Module]:
    return {component: module.cuda() for component, module in modules.items()}


def _scaled(*adapters: Adapter) -> list[ScaledAdapter]:
    return [
        ScaledAdapter(adapter=adapter, unet_scale=0.8, text_encoder_scale=0.8)
        for adapter in adapters
    ]


def _loras(modules: Modules, count: int) -> list[Adapter]:
    targets = linear_targets("unet", modules["unet"])
    return [
        random_lora(str(seed), modules, targets, rank=32, seed=seed, dtype=torch.float16)
        for seed in range(count)
    ]


@pytest.mark.parametrize("device_budget_bytes", [0, 500_000, _NO_LIMIT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_come_back_from_the_device_and_from_pinned_memory(
    dtype: torch.dtype, device_budget_bytes: int
) -> None:
    modules = _on_gpu(small_modules("sd1", dtype))
    pristine = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    state = MergedState(
        modules, device_budget_bytes=device_budget_bytes, merged_cache_bytes=0, verify_every=1
    )
    one, two = _loras(modules, 2)

    state.switch(_scaled(one, two))
    assert differing(modules, pristine)
    state.switch(())

    assert not differing(modules, pristine)
    assert state.saved_bytes.device <= device_budget_bytes
    assert bool(state.saved_bytes.pinned) == (device_budget_bytes < _NO_LIMIT)


@pytest.mark.parametrize(("family", "aim_ms"), [("sd1", 5), ("sdxl", 20)])
def test_time_of_a_switch_is_printed(
    family: Family, aim_ms: int, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = full_size_modules(family)["unet"].half().to_empty(device="cuda").requires_grad_(False)
    for parameter in unet.parameters():
        parameter.detach().normal_(0, 0.03)
    modules: dict[Component, nn.Module] = {"unet": unet}
    state = MergedState(
        modules, device_budget_bytes=_NO_LIMIT, merged_cache_bytes=0, verify_every=2**60
    )
    one, two = (_resident(lora) for lora in _loras(modules, 2))
    state.switch(_scaled(one))

    change_ms = min(_milliseconds(state, lora) for lora in (two, one, two, one, two))
    restore_ms = _milliseconds(state)

    with capsys.disabled():
        print(f"\n{family}: change {change_ms:.1f} ms (aim {aim_ms}), restore {restore_ms:.1f} ms")


def _resident(lora: Adapter) -> Adapter:
    """With its factors on the GPU, as from a cache there."""
    for delta in lora.deltas.values():
        assert isinstance(delta, LowRank)
        delta.up, delta.down = delta.up.cuda(), delta.down.cuda()
    return lora


def _milliseconds(state: MergedState, *loras: Adapter) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    state.switch(_scaled(*loras))
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


@pytest.mark.compiles
def test_compiled_code_follows_the_weights_without_compiling_again() -> None:
    torch._dynamo.reset()
    counters.clear()
    modules, latents = _network()
    state = MergedState(
        modules, device_budget_bytes=_NO_LIMIT, merged_cache_bytes=0, verify_every=1
    )
    compiled = torch.compile(modules["unet"], mode="reduce-overhead")
    for _ in range(3):
        compiled(latents)
    base = compiled(latents).clone()
    graphs = counters["stats"]["unique_graphs"]

    for lora in _loras_of_network(modules):
        state.switch(_scaled(lora))
        assert not torch.equal(compiled(latents), base)
    state.switch(())

    assert torch.equal(compiled(latents), base)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["recompiles"]


def test_a_captured_graph_follows_the_weights_without_another_capture() -> None:
    modules, latents = _network()
    network = modules["unet"]
    state = MergedState(
        modules, device_budget_bytes=_NO_LIMIT, merged_cache_bytes=0, verify_every=1
    )
    network(latents)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(latents)

    def replayed() -> Tensor:
        graph.replay()
        return output.clone()

    base = replayed()
    for lora in _loras_of_network(modules):
        state.switch(_scaled(lora))
        torch.testing.assert_close(replayed(), network(latents))
        assert not torch.equal(replayed(), base)
    state.switch(())
    assert torch.equal(replayed(), base)


def _network() -> tuple[dict[Component, nn.Module], Tensor]:
    network = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64))
    return {"unet": network.cuda().requires_grad_(False)}, torch.randn(8, 64, device="cuda")


def _loras_of_network(modules: Modules) -> list[Adapter]:
    targets = [Target("unet", "0.weight"), Target("unet", "2.weight")]
    return [random_lora(str(seed), modules, targets, rank=4, seed=seed) for seed in range(3)]
