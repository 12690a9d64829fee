"""Enlarging pictures to an exact size, by filters and networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imagefleet_shared.errors import UnsupportedSize
from imagefleet_shared.request_parts import UpscalePass
from imagefleet_shared.status import Stage
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.upscale.cache import UpscalerCache
from imagefleet_worker.upscale.enlarge import Enlarger
from tests.architectures import random_weights

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")

MAX_PIXELS = 256 * 256


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory: pytest.TempPathFactory) -> Enlarger:
    folder: Path = tmp_path_factory.mktemp("upscalers")
    for name in ("compact", "swinir-lightweight", "swinir-denoise"):
        save_file(random_weights(name), folder / f"{name}.safetensors")
    cache = UpscalerCache(
        lambda name: folder / f"{name}.safetensors", torch.device("cpu"), torch.float32, 10**9
    )
    return Enlarger(cache, MAX_PIXELS)


class RecordedProgress:
    """Records the steps that are reported."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.progress = BatchProgress([self._report])

    def _report(self, stage: Stage, step: int, steps: int) -> None:
        assert stage == "upscale"
        if steps:
            self.steps.append((step, steps))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("upscaler", ["nearest", "lanczos", "compact", "swinir-denoise"])
@pytest.mark.parametrize(
    "target", [{"scale": 1}, {"scale": 1.7}, {"scale": 5}, {"width": 7}, {"width": 50, "height": 9}]
)
def test_the_size_is_exact(enlarger: Enlarger, upscaler: str, target: dict[str, float]) -> None:
    upscale = UpscalePass.model_validate({"upscaler": upscaler, **target})
    picture = enlarger.enlarge(noise(13, 8), upscale, RecordedProgress().progress)
    scale = target.get("scale")
    if scale:
        assert picture.size == (round(13 * scale), round(8 * scale))
    else:
        assert picture.size == (target["width"], target.get("height", 4))
    assert picture.mode == "RGB"


def test_a_filter_at_scale_1_changes_nothing(enlarger: Enlarger) -> None:
    for upscaler in ("nearest", "lanczos"):
        upscale = UpscalePass(upscaler=upscaler, scale=1)
        picture = enlarger.enlarge(noise(13, 8), upscale, RecordedProgress().progress)
        assert picture.tobytes() == noise(13, 8).tobytes()


def test_a_network_is_applied_at_scale_1_too(enlarger: Enlarger) -> None:
    for upscaler in ("swinir-denoise", "compact"):
        upscale = UpscalePass(upscaler=upscaler, scale=1)
        recorded = RecordedProgress()
        picture = enlarger.enlarge(noise(13, 8), upscale, recorded.progress)
        assert picture.tobytes() != noise(13, 8).tobytes()
        assert recorded.steps == [(1, 1)]


def test_tiles_of_all_networks_and_runs_are_reported_as_one_sequence(enlarger: Enlarger) -> None:
    upscale = UpscalePass(
        upscaler="swinir-lightweight",
        upscaler_2="compact",
        scale=3,
        tile_size=16,
        tile_overlap=0,
    )
    recorded = RecordedProgress()
    enlarger.enlarge(noise(32, 16), upscale, recorded.progress)
    steps = [step for step, _ in recorded.steps]
    assert steps == sorted(steps)
    # Two runs of x2, one of x4.
    assert recorded.steps[-1] == (300, 300)
    assert (50, 300) in recorded.steps


def test_a_second_upscaler_with_visibility_0_is_not_run(enlarger: Enlarger) -> None:
    recorded = RecordedProgress()
    upscale = UpscalePass(
        upscaler="nearest", upscaler_2="compact", upscaler_2_visibility=0, scale=2
    )
    enlarger.enlarge(noise(8, 8), upscale, recorded.progress)
    assert recorded.steps == []


def test_intermediate_results_are_limited_in_size(enlarger: Enlarger) -> None:
    enlarger.enlarge(
        noise(128, 128), UpscalePass(upscaler="compact", scale=1), RecordedProgress().progress
    )
    with pytest.raises(UnsupportedSize, match="compact's output 516x512"):
        enlarger.enlarge(
            noise(129, 128), UpscalePass(upscaler="compact", scale=1), RecordedProgress().progress
        )


def test_16_bit_grey_becomes_rgb(enlarger: Enlarger) -> None:
    grey16 = Image.fromarray(np.full((8, 8), 0x7F00, dtype=np.uint16))
    for upscaler in ("nearest", "lanczos", "compact"):
        for scale in (1, 2):
            upscale = UpscalePass(upscaler=upscaler, scale=scale)
            picture = enlarger.enlarge(grey16, upscale, RecordedProgress().progress)
            assert (picture.mode, picture.size) == ("RGB", (8 * scale, 8 * scale))
            if upscaler != "compact":
                assert picture.getpixel((3, 3)) == (0x7F, 0x7F, 0x7F)
