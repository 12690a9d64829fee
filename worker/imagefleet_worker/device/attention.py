"""How the UNet and the VAE compute attention: chosen by trying, because an import proves nothing.

xformers imports on a CPU and beside a torch that it was not built for, and then none of its
operators run.
"""

from collections.abc import Callable
from typing import Literal

import torch
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from imagefleet_shared.errors import WorkerFailure

AttentionBackend = Literal["sdpa", "xformers", "sliced"]

# Channels a head in SD 1.x (40, 80, 160) and SDXL (64): kernels refuse some sizes and not others.
_HEAD_CHANNELS = (40, 64, 80, 160)
_PIXELS, _TOKENS, _HEADS = 64, 77, 8

_Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def choose_attention(
    backend: Literal["auto", "sdpa", "xformers", "sliced"],
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionBackend:
    """The backend asked for, or the first that works here: sdpa, xformers, sliced.

    sdpa comes first because recent torch hands it to FlashAttention, cuDNN or a memory-efficient
    kernel, whichever suits device and shape, and needs no package that must match torch's version.

    Raises:
        WorkerFailure: the backend asked for, or with "auto" every one, fails a small cross
            attention of the models' head sizes on this device in this dtype.
    """
    wanted: tuple[AttentionBackend, ...] = (
        ("sdpa", "xformers", "sliced") if backend == "auto" else (backend,)
    )
    reasons: list[str] = []
    for candidate in wanted:
        reason = _why_not(candidate, device, dtype)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise WorkerFailure(f"no attention on {device} in {dtype}: {'; '.join(reasons)}")


def set_attention(
    unet: UNet2DConditionModel, vae: AutoencoderKL, backend: AttentionBackend
) -> None:
    """Have both models compute attention with the backend, one that ``choose_attention`` returned.

    "sliced" takes one head of one picture at a time: least memory, slowest. The VAE has one head of
    up to 512 channels, wider than xformers' fast kernels take, so with "xformers" it keeps sdpa.
    """
    if backend == "sliced":
        unet.set_attn_processor(SlicedAttnProcessor(slice_size=1))
        vae.set_attn_processor(SlicedAttnProcessor(slice_size=1))
        return
    unet.set_attn_processor(AttnProcessor2_0() if backend == "sdpa" else XFormersAttnProcessor())
    vae.set_attn_processor(AttnProcessor2_0())


def _why_not(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    """None when the backend works, else the first line of its complaint."""
    attend = _ATTEND[backend]
    try:
        for channels in _HEAD_CHANNELS:
            query = torch.ones(1, _HEADS, _PIXELS, channels, device=device, dtype=dtype)
            key = torch.ones(1, _HEADS, _TOKENS, channels, device=device, dtype=dtype)
            # A kernel that fails asynchronously would otherwise fail in somebody's job.
            attend((query, key, key)).sum().item()
    # Whatever a third-party kernel raises means the same here; xformers alone raises four kinds.
    except Exception as exc:
        return (str(exc) or type(exc).__name__).partition("\n")[0]
    return None


def _sdpa(tensors: _Tensors) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*tensors)


def _xformers(tensors: _Tensors) -> torch.Tensor:
    # Imported only when tried: it is no dependency outside x86-64, and importing it logs its
    # complaints.
    from xformers.ops import memory_efficient_attention

    query, key, value = (tensor.flatten(0, 1) for tensor in tensors)
    return memory_efficient_attention(query, key, value)


def _sliced(tensors: _Tensors) -> torch.Tensor:
    query, key, value = (tensor.flatten(0, 1) for tensor in tensors)
    return torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1), value)


_ATTEND: dict[AttentionBackend, Callable[[_Tensors], torch.Tensor]] = {
    "sdpa": _sdpa,
    "xformers": _xformers,
    "sliced": _sliced,
}
