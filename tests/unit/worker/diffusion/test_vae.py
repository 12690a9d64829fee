"""The VAE in half precision: it stays there unless it overflows, then is upcast for good."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from prometheus_client import REGISTRY
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, WorkerFailure
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.vae import decode_latents, encode_images
from imagefleet_worker.imaging.convert import to_vae_range
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.weights.families import Family
from tests.options import PLAIN
from tools.demo_models import demo_models
from tools.make_demo_checkpoint import write_checkpoint

HALVES = [torch.float16, torch.bfloat16]
WarmVae = Callable[[str, torch.dtype], WarmPipeline]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL checkpoints: a sane VAE, one whose activations overflow float16, and one of NaN weights.

    In float32 the second works like the first: what a convolution scales up, the norm after it
    scales down. SDXL's first release is like that; the later fix made its weights smaller.
    """
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    parts = demo_models("sdxl", seed=0)
    family: Family = "sdxl"
    write_checkpoint(root / "checkpoints/sane.safetensors", family, parts, "sane")
    vae = parts["vae"]
    for name in ("decoder.conv_in", "encoder.conv_in"):
        vae.get_submodule(name).requires_grad_(False)
        vae.get_parameter(f"{name}.weight").mul_(300_000)
        vae.get_parameter(f"{name}.bias").mul_(300_000)
    write_checkpoint(root / "checkpoints/hot.safetensors", family, parts, "hot")
    for name in ("decoder.conv_out.bias", "quant_conv.bias"):
        vae.get_parameter(name).requires_grad_(False).fill_(float("nan"))
    write_checkpoint(root / "checkpoints/broken.safetensors", family, parts, "broken")
    return root


def warm_from(models: Path, name: str, dtype: torch.dtype, tiling: bool = False) -> WarmPipeline:
    store = ModelStore(models)
    options = replace(PLAIN, vae_tiling=tiling)
    cache = PipelineCache(store, torch.device("cpu"), dtype, options, 2**40, 2**40, 0, 1)
    return cache.get(store.find("checkpoint", name))


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def progress() -> BatchProgress:
    return BatchProgress([lambda _stage, _step, _steps: None])


def picture(seed: int, side: int = 64) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def upcasts() -> float:
    return REGISTRY.get_sample_value("imagefleet_vae_upcasts_total") or 0


def vae_dtypes(warm: WarmPipeline) -> set[torch.dtype]:
    return {parameter.dtype for parameter in warm.pipeline.vae.parameters()}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_sane_vae_stays_in_half_precision(
    dtype: torch.dtype, models: Path, latents: Tensor
) -> None:
    exact, half = warm_from(models, "sane", torch.float32), warm_from(models, "sane", dtype)
    count = upcasts()

    pictures = decode_latents(half, latents, progress())

    assert (pictures.dtype, pictures.device.type) == (torch.float32, "cpu")
    assert pictures.shape == (2, 3, 128, 128)
    # A grey level is 2 / 255.
    bound = 0.02 if dtype == torch.float16 else 0.12
    torch.testing.assert_close(
        pictures, decode_latents(exact, latents, progress()), rtol=0, atol=bound
    )
    assert vae_dtypes(half) == {dtype}
    assert upcasts() == count


@pytest.mark.parametrize("tiling", [False, True])
def test_a_vae_that_overflows_is_upcast_to_float32_for_good(
    tiling: bool, models: Path, latents: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """With tiling ("balanced") the picture is larger than one tile: NaN in one tile is enough."""
    if tiling:
        latents = torch.cat([latents, latents], dim=-1)
    hot = warm_from(models, "hot", torch.float16, tiling)
    exact = warm_from(models, "hot", torch.float32, tiling)
    raw = hot.pipeline.vae.decode(latents.half() / hot.pipeline.vae.config.scaling_factor)
    assert not raw.sample.isfinite().all()
    count, size_bytes = upcasts(), hot.size_bytes

    with caplog.at_level(logging.WARNING):
        pictures = decode_latents(hot, latents, progress())

    assert torch.equal(pictures, decode_latents(exact, latents, progress()))
    assert vae_dtypes(hot) == {torch.float32}
    assert hot.pipeline.unet.dtype == torch.float16
    assert hot.size_bytes > size_bytes
    assert upcasts() == count + 1
    (record,) = caplog.records
    assert record.getMessage() == "the VAE of hot overflows in torch.float16: upcast to float32"

    decode_latents(hot, latents, progress())
    encode_images(hot, [picture(0)])
    assert upcasts() == count + 1
    assert len(caplog.records) == 1


def test_a_vae_that_overflows_when_encoding_is_upcast_too(models: Path) -> None:
    hot = warm_from(models, "hot", torch.float16)
    exact = warm_from(models, "hot", torch.float32)

    assert torch.equal(encode_images(hot, [picture(1)]), encode_images(exact, [picture(1)]))
    assert vae_dtypes(hot) == {torch.float32}


def test_bfloat16_has_float32s_range_and_needs_no_upcast(models: Path, latents: Tensor) -> None:
    hot = warm_from(models, "hot", torch.bfloat16)

    assert decode_latents(hot, latents, progress()).isfinite().all()
    assert vae_dtypes(hot) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_vae_that_produces_nan_in_float32_is_an_error_and_no_black_picture(
    dtype: torch.dtype, models: Path, latents: Tensor
) -> None:
    broken = warm_from(models, "broken", dtype)

    with pytest.raises(CorruptFile, match="the VAE of 'broken' produces NaN"):
        decode_latents(broken, latents, progress())
    with pytest.raises(CorruptFile, match="the VAE of 'broken' produces NaN"):
        encode_images(broken, [picture(0)])


def test_infinite_latents_are_not_blamed_on_the_vae(models: Path, latents: Tensor) -> None:
    sane = warm_from(models, "sane", torch.float16)
    latents[1, 0, 3, 3] = float("inf")

    with pytest.raises(WorkerFailure, match=r"the UNet of 'sane' produced .* in torch\.float16"):
        decode_latents(sane, latents, progress())
    assert vae_dtypes(sane) == {torch.float16}


def test_a_picture_encodes_to_the_same_latents_in_every_batch(models: Path) -> None:
    warm = warm_from(models, "sane", torch.float32)
    pictures = [picture(seed) for seed in range(3)]

    together = encode_images(warm, pictures)

    assert (together.shape, together.dtype) == ((3, 4, 8, 8), torch.float32)
    for index, one in enumerate(pictures):
        assert torch.equal(encode_images(warm, [one])[0], together[index])


def test_every_picture_is_decoded_by_itself_and_counts_as_a_step(
    models: Path, latents: Tensor
) -> None:
    warm = warm_from(models, "sane", torch.float32)
    steps: list[int] = []
    counting = BatchProgress([lambda _stage, step, _steps: steps.append(step)])

    together = decode_latents(warm, latents, counting)

    assert steps == [1, 2]
    assert torch.equal(decode_latents(warm, latents[1:], progress())[0], together[1])


def test_the_latents_are_the_scaled_mode_of_what_diffusers_encodes(models: Path) -> None:
    warm = warm_from(models, "sane", torch.float32)
    vae = warm.pipeline.vae
    encoded = encode_images(warm, [picture(2)])
    mode = vae.encode(to_vae_range(picture(2))).latent_dist.mode() * vae.config.scaling_factor
    assert torch.equal(encoded, mode)
