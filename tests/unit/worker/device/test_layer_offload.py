"""With sequential offload, weights are copied to the device per layer and never change.

Torch's `meta` device stands in for the GPU, or the CPU itself, to which weights are copied too.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, Sequential

from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.device.layer_offload import offload_layers
from imagefleet_worker.settings import WorkerSettings
from tests.local_renderer import LocalRenderer, mask, open_renderer, photo
from tests.options import PLAIN
from tools.demo_models import demo_models as random_models

CPU, META = torch.device("cpu"), torch.device("meta")
SEQUENTIAL = replace(PLAIN, offload="sequential")


def addresses(network: Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}


def copied(network: Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(network: Module, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@torch.no_grad()
def test_each_layer_is_on_the_device_only_while_it_runs() -> None:
    unet = random_models("sd1", seed=0)["unet"]
    before, bits = addresses(unet), copied(unet)
    offload_layers(unet, META)
    on_device = list[int]()

    def count(layer: Module, args: object, output: object) -> None:
        tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        assert all(tensor.is_meta for tensor in tensors)
        on_device.append(sum(tensor.is_meta for tensor in unet.parameters()))

    for layer in unet.modules():
        if isinstance(layer, Linear):
            layer.register_forward_hook(count, prepend=True)
    latents, hidden = torch.empty(2, 4, 16, 16), torch.empty(2, 77, 96)
    output = unet(latents.to(META), torch.tensor(1.0, device=META), hidden.to(META))

    assert output.sample.is_meta
    assert max(on_device) == 2, "a weight and a bias"
    assert addresses(unet) == before
    assert equal(unet, bits)


@torch.no_grad()
@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError])
def test_weights_are_restored_after_a_layer_fails(error: type[Exception]) -> None:
    def fail(layer: Module, args: object) -> None:
        raise error("not today")

    network = Sequential(Linear(4, 4), Linear(4, 4), LayerNorm(4))
    before, bits = addresses(network), copied(network)
    offload_layers(network, META)
    failing = network[1].register_forward_pre_hook(fail)
    with pytest.raises(error):
        network(torch.empty(1, 4, device=META))
    failing.remove()

    network(torch.empty(1, 4, device=META))
    assert addresses(network) == before
    assert equal(network, bits)


@torch.no_grad()
def test_changes_of_weights_in_host_memory_take_effect() -> None:
    layer = Linear(4, 4)
    offload_layers(layer, CPU)
    x = torch.randn(1, 4)
    before = layer(x)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    assert torch.equal(layer(x), before * 2)


@pytest.fixture(scope="module", name="plain")
def _plain(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRenderer:
    return opened(demo_models, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module", name="offloaded")
def _offloaded(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRenderer:
    renderer = opened(demo_models, tmp_path_factory.mktemp("offloaded"))
    # Set directly, because settings allow it only with a GPU.
    renderer.pipelines._options = SEQUENTIAL  # pyright: ignore[reportPrivateUsage]
    return renderer


def opened(models: Path, folder: Path) -> LocalRenderer:
    return open_renderer(models, folder, WorkerSettings(verify_every=1))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "a (red:1.3) fox <lora:demo-one:0.6>"},
        {"checkpoint": "demo-xl", "num_images": 2},
        {"hires": {"scale": 1.5, "prompt": "a fox <lora:demo-one:0.6>", "upscaler": "latent"}},
    ],
    ids=["plain", "lora", "sdxl", "hires"],
)
def test_images_are_the_same(
    plain: LocalRenderer, offloaded: LocalRenderer, fields: dict[str, Any]
) -> None:
    actual, expected = (renderer.render_all(**fields) for renderer in (offloaded, plain))
    assert [image.tobytes() for image in actual] == [image.tobytes() for image in expected]


def test_the_vae_encoder_is_offloaded_too(plain: LocalRenderer, offloaded: LocalRenderer) -> None:
    actual, expected = (
        renderer.render(
            image=renderer.upload(photo()), inpaint={"mask_image": renderer.upload(mask())}
        )
        for renderer in (offloaded, plain)
    )
    assert actual.tobytes() == expected.tobytes()


def test_the_whole_pipeline_runs_on_the_device(demo_models: Path) -> None:
    """No layer runs on the CPU."""
    pipelines = PipelineCache(
        ModelStore(demo_models), META, torch.float32, SEQUENTIAL, 2**40, 2**40, 0, 1
    )
    warm = pipelines.get(ModelStore(demo_models).find("checkpoint", "demo-xl"))
    for tensor in warm.tensors():
        assert tensor.device == CPU
    ids = torch.zeros(1, 77, dtype=torch.long, device=META)
    for encoder in (warm.pipeline.text_encoder, warm.pipeline.text_encoder_2):
        assert encoder(ids).last_hidden_state.is_meta
    assert warm.pipeline.vae.decode(torch.empty(1, 4, 8, 8, device=META)).sample.is_meta
