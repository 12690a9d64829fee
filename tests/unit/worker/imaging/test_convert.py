"""Value ranges are converted as in diffusers, and images resized with Lanczos."""

from typing import cast

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from imagefleet_worker.imaging.convert import (
    from_unit_range,
    from_vae_range,
    resize,
    to_unit_range,
    to_vae_range,
)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_ranges_convert_as_in_diffusers() -> None:
    image = noise(17, 9)
    processor = VaeImageProcessor(do_resize=False)
    theirs = processor.preprocess(image)
    assert torch.equal(to_vae_range(image), theirs)
    assert torch.equal(
        to_unit_range(image), VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decoded_latents_become_the_same_pictures_as_in_diffusers(dtype: torch.dtype) -> None:
    decoded = torch.randn(3, 3, 40, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs = cast("list[Image.Image]", VaeImageProcessor().postprocess(decoded, output_type="pil"))
    ours = from_vae_range(decoded)
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]
    assert ours[0].size == (24, 40)


def test_halves_round_as_in_diffusers() -> None:
    steps = torch.arange(511).float().div(510).expand(1, 3, 1, 511)
    [theirs] = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(steps))
    [ours] = from_unit_range(steps)
    assert ours.tobytes() == theirs.tobytes()


def test_every_value_survives_both_ranges() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], axis=-1))
    assert from_unit_range(to_unit_range(image))[0].tobytes() == image.tobytes()
    assert from_vae_range(to_vae_range(image))[0].tobytes() == image.tobytes()


def test_resizing_is_lanczos_to_the_exact_size() -> None:
    image = noise(16, 8)
    assert resize(image, 33, 7).size == (33, 7)
    assert (
        resize(image, 40, 20).tobytes()
        == image.resize((40, 20), Image.Resampling.LANCZOS).tobytes()
    )
