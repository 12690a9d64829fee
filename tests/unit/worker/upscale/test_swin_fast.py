"""SwinIR with our transformer blocks, compared with spandrel's."""

from typing import cast

import pytest
import torch
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imagefleet_worker.upscale.swin_fast import replace_blocks
from imagefleet_worker.upscale.tiles import Tiling
from imagefleet_worker.upscale.upscaler import Upscaler
from tests.architectures import ARCHITECTURES, random_weights

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")

# The native size (16 x 16), a multiple of the window, and sizes that SwinIR pads.
SIZES = [(16, 16), (64, 48), (17, 33), (7, 5), (1, 1), (8, 30), (100, 90)]
SWINIRS = [name for name, (module, *_) in ARCHITECTURES.items() if module.endswith(".SwinIR")]


def spandrel_model(weights: dict[str, Tensor]) -> ImageModelDescriptor[nn.Module]:
    # spandrel empties the dictionary that it reads.
    descriptor = ModelLoader("cpu").load_from_state_dict(dict(weights))
    assert isinstance(descriptor, ImageModelDescriptor)
    assert isinstance(descriptor.model, SwinIR)
    return descriptor.eval()


def weights_with_strong_attention(name: str) -> dict[str, Tensor]:
    """Random weights whose attention matters: the initial scores and biases are near 0."""
    weights = random_weights(name)
    generator = torch.Generator().manual_seed(1)
    for key, tensor in weights.items():
        if key.endswith(("relative_position_bias_table", "qkv.bias", "proj.bias")):
            tensor.normal_(0, 0.5, generator=generator)
        elif "residual_group.blocks" in key and tensor.dim() == 2 and tensor.is_floating_point():
            tensor.mul_(10)
    return weights


def photo(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return interpolate(coarse, size=(height, width), mode="bilinear")


def fast_upscaler(descriptor: ImageModelDescriptor[nn.Module], dtype: torch.dtype) -> Upscaler:
    return Upscaler("swinir", descriptor, dtype)


def whole(upscaler: Upscaler, image: Tensor) -> Tensor:
    with torch.no_grad():
        [rows] = upscaler.rows(image, Tiling(512, 16), lambda done, total: None)
    return rows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SWINIRS)
def test_the_output_equals_spandrels_up_to_rounding(name: str, size: tuple[int, int]) -> None:
    weights = weights_with_strong_attention(name)
    with torch.no_grad():
        expected = spandrel_model(weights)(photo(*size))
    enlarged = whole(fast_upscaler(spandrel_model(weights), torch.float32), photo(*size))
    torch.testing.assert_close(enlarged, expected, rtol=0, atol=2e-5)


def test_windows_at_the_edges_have_a_mask_of_their_own() -> None:
    """With the interior mask everywhere, pixels of opposite edges would attend to each other."""
    weights = weights_with_strong_attention("swinir-lightweight")
    with torch.no_grad():
        model = cast(SwinIR, spandrel_model(weights).model)
        expected = model(photo(24, 32))
        replace_blocks(model)
        for name, masks in model.named_buffers():
            if name.endswith("_masks"):
                masks[1:] = masks[0]
        assert (model(photo(24, 32)) - expected).abs().max() > 1e-3


def test_pictures_of_a_batch_do_not_affect_each_other() -> None:
    descriptor = spandrel_model(weights_with_strong_attention("swinir-lightweight"))
    replace_blocks(cast(SwinIR, descriptor.model))
    pictures = torch.cat([photo(24, 40), photo(24, 40).flip(3), torch.rand(1, 3, 24, 40)])
    with torch.no_grad():
        batched = descriptor(pictures)
        single = torch.cat([descriptor(picture[None]) for picture in pictures])
    torch.testing.assert_close(batched, single, rtol=0, atol=2e-6)


def test_alternating_sizes_are_correct() -> None:
    """Window orders are cached by size."""
    descriptor = spandrel_model(weights_with_strong_attention("swinir-lightweight"))
    upscaler = fast_upscaler(
        spandrel_model(weights_with_strong_attention("swinir-lightweight")), torch.float32
    )
    with torch.no_grad():
        for size in [(16, 24), (24, 16), (16, 24), (8, 8), (24, 16)]:
            torch.testing.assert_close(
                whole(upscaler, photo(*size)), descriptor(photo(*size)), rtol=0, atol=2e-5
            )


@pytest.mark.parametrize("size", SIZES)
def test_swinir_runs_in_bfloat16_at_every_size(size: tuple[int, int]) -> None:
    weights = random_weights("swinir-lightweight")
    enlarged = whole(fast_upscaler(spandrel_model(weights), torch.bfloat16), photo(*size))
    assert enlarged.dtype == torch.float32
    with torch.no_grad():
        expected = spandrel_model(weights)(photo(*size))
    # bfloat16 has steps of 1/256 below 1.
    torch.testing.assert_close(enlarged, expected, rtol=0, atol=0.015)


def test_spandrels_swinir_fails_in_bfloat16_off_its_native_size() -> None:
    """One reason for our blocks; if this test fails, spandrel has fixed it."""
    descriptor = spandrel_model(random_weights("swinir-lightweight")).bfloat16()
    with pytest.raises(RuntimeError, match="dtype"):
        descriptor(photo(64, 48).bfloat16())
