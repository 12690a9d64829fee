"""The attention backend is chosen by trying it, and all backends give the same output."""

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from imagefleet_shared.errors import WorkerFailure
from imagefleet_worker.device.attention import AttentionBackend, choose_attention, set_attention
from tools.demo_models import demo_models

CPU = torch.device("cpu")

Models = tuple[UNet2DConditionModel, AutoencoderKL]


@pytest.fixture(scope="module")
def models() -> Models:
    parts = demo_models("sd1", seed=1)
    unet, vae = parts["unet"], parts["vae"]
    assert isinstance(unet, UNet2DConditionModel)
    assert isinstance(vae, AutoencoderKL)
    return unet, vae


def test_auto_prefers_sdpa_where_it_works() -> None:
    assert choose_attention("auto", CPU, torch.float32) == "sdpa"


@pytest.mark.parametrize("backend", ["sdpa", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_requested_backend_that_works_is_chosen(
    backend: AttentionBackend, dtype: torch.dtype
) -> None:
    assert choose_attention(backend, CPU, dtype) == backend


# The package warns on import that it was built for another torch, which is the point here.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_xformers_on_a_cpu_is_refused_with_its_reason_though_it_imports() -> None:
    with pytest.raises(WorkerFailure, match=r"no attention on cpu in torch\.float32: xformers: .+"):
        choose_attention("xformers", CPU, torch.float32)


def test_a_device_that_runs_nothing_is_refused_with_every_reason() -> None:
    with pytest.raises(WorkerFailure, match=r"sdpa: .*xformers: .*sliced: "):
        choose_attention("auto", torch.device("meta"), torch.float32)


def test_sliced_attention_gives_the_same_output(models: Models) -> None:
    unet, vae = models
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 96)
    outputs: list[list[torch.Tensor]] = []

    with torch.no_grad():
        for backend in ("sdpa", "sliced"):
            set_attention(unet, vae, backend)
            outputs.append([unet(latents, 5, context)[0], vae.decoder(latents)])

    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backend", "in_unet", "in_vae"),
    [
        ("sdpa", AttnProcessor2_0, AttnProcessor2_0),
        ("sliced", SlicedAttnProcessor, SlicedAttnProcessor),
        ("xformers", XFormersAttnProcessor, AttnProcessor2_0),
    ],
)
def test_every_layer_gets_the_backend(
    backend: AttentionBackend, in_unet: type, in_vae: type, models: Models
) -> None:
    unet, vae = models
    set_attention(unet, vae, backend)

    assert {type(part) for part in unet.attn_processors.values()} == {in_unet}
    assert {type(part) for part in vae.attn_processors.values()} == {in_vae}
