"""Images equal the stored golden images, unless a change that intends otherwise updates them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.golden_pictures import FOLDER, REQUESTS, render
from tests.local_renderer import LocalRenderer, open_local_renderer

# The same weights and steps give nearly the same image on every machine: kernels round differently.
MIN_PSNR_DB = 45


@pytest.fixture(scope="module")
def renderer(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRenderer:
    return open_local_renderer(demo_models, tmp_path_factory.mktemp("store"))


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return float(10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-9)))


@pytest.mark.parametrize("name", REQUESTS)
def test_an_image_equals_its_golden_image(
    renderer: LocalRenderer, name: str, tmp_path: Path
) -> None:
    golden, rendered = Image.open(FOLDER / f"{name}.png").convert("RGB"), render(renderer, name)
    assert rendered.size == golden.size
    similarity = psnr_db(rendered, golden)
    if similarity < MIN_PSNR_DB:
        both = Image.new("RGB", (2 * golden.width, golden.height))
        both.paste(golden, (0, 0))
        both.paste(rendered, (golden.width, 0))
        both.save(tmp_path / f"{name}.png")
        pytest.fail(f"{name}: {similarity:.1f} dB; golden and rendered: {tmp_path / name}.png")


def test_every_golden_image_has_its_request_and_differs_from_the_others() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(REQUESTS)
    assert len({file.read_bytes() for file in FOLDER.iterdir()}) == len(REQUESTS)
