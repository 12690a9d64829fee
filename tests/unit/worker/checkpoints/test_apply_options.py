"""Options are applied to a pipeline without replacing weights that adapters merge into."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.checkpoints.apply_options import apply_options
from imagefleet_worker.checkpoints.empty_pipeline import Pipeline
from imagefleet_worker.checkpoints.single_file import load_single_file
from imagefleet_worker.device.presets import Options
from imagefleet_worker.settings import WorkerSettings
from tests.local_renderer import open_renderer
from tests.options import PLAIN
from tests.weights import differing, layout, tensors_of

CPU = torch.device("cpu")


def configured(demo_models: Path, options: Options) -> Pipeline:
    path = demo_models / "checkpoints/demo.safetensors"
    pipeline = load_single_file(path, CPU, torch.float32).pipeline
    apply_options(pipeline, options, CPU)
    return pipeline


@pytest.mark.parametrize(
    ("options", "processor"),
    [(PLAIN, AttnProcessor2_0), (replace(PLAIN, attention="sliced"), SlicedAttnProcessor)],
)
def test_unet_and_vae_use_the_attention_backend(
    demo_models: Path, options: Options, processor: type
) -> None:
    pipeline = configured(demo_models, options)

    for module in (pipeline.unet, pipeline.vae):
        assert {type(part) for part in module.attn_processors.values()} == {processor}


@pytest.mark.parametrize("tiling", [True, False])
def test_vae_tiling_is_enabled_as_set(demo_models: Path, tiling: bool) -> None:
    assert configured(demo_models, replace(PLAIN, vae_tiling=tiling)).vae.use_tiling is tiling


@pytest.mark.parametrize("channels_last", [True, False])
def test_convolutions_use_channels_last_as_set(demo_models: Path, channels_last: bool) -> None:
    pipeline = configured(demo_models, replace(PLAIN, channels_last=channels_last))

    for module, name in (
        (pipeline.unet, "down_blocks.0.resnets.0.conv1.weight"),
        (pipeline.vae, "decoder.mid_block.resnets.0.conv1.weight"),
    ):
        weight = module.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert weight.is_contiguous() is not channels_last


def test_only_blocks_of_unet_and_decoder_are_compiled(demo_models: Path) -> None:
    pipeline = configured(demo_models, replace(PLAIN, compile=True))

    def compiled(module: torch.nn.Module) -> set[type]:
        parts = module.modules()
        return {type(part) for part in parts if vars(part).get("_compiled_call_impl")}

    assert compiled(pipeline.unet) == {ResnetBlock2D, BasicTransformerBlock}
    assert compiled(pipeline.vae.decoder) == {ResnetBlock2D}
    assert compiled(pipeline.vae.encoder) == set()
    assert compiled(pipeline.text_encoder) == set()


def test_unmerging_restores_values_and_memory_of_channels_last_weights(
    demo_models: Path, tmp_path: Path
) -> None:
    settings = WorkerSettings(channels_last=True, verify_every=1)
    renderer = open_renderer(demo_models, tmp_path, settings)
    before = renderer.render().tobytes()
    pipeline = renderer.warm("demo").pipeline
    modules: dict[Component, nn.Module] = {
        "unet": pipeline.unet,
        "text_encoder": pipeline.text_encoder,
    }
    pristine = {target: tensor.clone() for target, tensor in tensors_of(modules).items()}
    layout_before = layout(modules)

    changed = renderer.render("a red fox <lora:demo-one:0.8>").tobytes()
    assert differing(modules, pristine)
    assert layout(modules) == layout_before
    assert changed != before

    assert renderer.render().tobytes() == before
    assert not differing(modules, pristine)
    assert layout(modules) == layout_before
