"""SwinIR's blocks, compiled."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo as dynamo
from torch.nn.functional import interpolate

from imagefleet_worker.device.compile import set_up_compiler, why_no_compiler
from imagefleet_worker.upscale.architectures import build_descriptor
from imagefleet_worker.upscale.tiles import Tiling
from imagefleet_worker.upscale.upscaler import Upscaler
from tests.architectures import random_weights

pytestmark = [
    pytest.mark.skipif(
        why_no_compiler() is not None, reason=f"NOT RUN: compiled SwinIR; {why_no_compiler()}"
    ),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    set_up_compiler(tmp_path)
    yield
    dynamo.reset()


def upscaler(compiled: bool) -> Upscaler:
    descriptor = build_descriptor(random_weights("swinir-lightweight"))
    return Upscaler("swinir", descriptor, torch.float32, compiled)  # pyright: ignore[reportArgumentType]


def enlarged(upscaler: Upscaler, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    picture = interpolate(coarse, size=(height, width), mode="bilinear")
    with torch.no_grad():
        [rows] = upscaler.rows(picture, Tiling(512, 16), lambda done, total: None)
    return rows


def test_the_output_equals_eager_up_to_rounding_and_new_sizes_do_not_recompile() -> None:
    plain, compiled = upscaler(False), upscaler(True)
    for size in [(64, 48), (24, 16)]:
        torch.testing.assert_close(
            enlarged(compiled, *size), enlarged(plain, *size), rtol=0, atol=2e-5
        )
    with dynamo.config.patch(error_on_recompile=True):
        for size in [(17, 33), (100, 90)]:
            torch.testing.assert_close(
                enlarged(compiled, *size), enlarged(plain, *size), rtol=0, atol=2e-5
            )
