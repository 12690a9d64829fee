"""Chooses the attention backend of UNet and VAE by trying it: a successful import is no proof.

xformers can be imported on a CPU, or with a torch it was not built for, although none of its
operators run then.
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

# Channels per head in SD 1.x (40, 80, 160) and SDXL (64): kernels support only some sizes.
_HEAD_CHANNELS = (40, 64, 80, 160)
_PIXELS, _TOKENS, _HEADS = 64, 77, 8

_Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def choose_attention(
    backend: Literal["auto", "sdpa", "xformers", "sliced"],
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionBackend:
    """The requested backend, or with "auto" the first that works of sdpa, xformers and sliced.

    sdpa comes first because recent torch dispatches it to FlashAttention, cuDNN or a
    memory-efficient kernel, and it needs no package that must match torch's version.

    Raises:
        WorkerFailure: the requested backend, or with "auto" every one, fails a small cross
            attention with the models' head sizes on this device in this dtype.
    """
    candidates: tuple[AttentionBackend, ...] = (
        ("sdpa", "xformers", "sliced") if backend == "auto" else (backend,)
    )
    reasons: list[str] = []
    for candidate in candidates:
        reason = _failure_reason(candidate, device, dtype)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise WorkerFailure(f"no attention on {device} in {dtype}: {'; '.join(reasons)}")


def set_attention(
    unet: UNet2DConditionModel, vae: AutoencoderKL, backend: AttentionBackend
) -> None:
    """Set the attention processors of both models to a backend from ``choose_attention``.

    "sliced" computes one head of one image at a time: least memory, slowest. The VAE has one head
    of up to 512 channels, too wide for xformers' fast kernels, so with "xformers" it uses sdpa.
    """
    if backend == "sliced":
        unet.set_attn_processor(SlicedAttnProcessor(slice_size=1))
        vae.set_attn_processor(SlicedAttnProcessor(slice_size=1))
        return
    unet.set_attn_processor(AttnProcessor2_0() if backend == "sdpa" else XFormersAttnProcessor())
    vae.set_attn_processor(AttnProcessor2_0())


def _failure_reason(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype
) -> str | None:
    """The first line of the backend's error; None if it works."""
    attend = _ATTEND[backend]
    try:
        for channels in _HEAD_CHANNELS:
            query = torch.ones(1, _HEADS, _PIXELS, channels, device=device, dtype=dtype)
            key = torch.ones(1, _HEADS, _TOKENS, channels, device=device, dtype=dtype)
            # Synchronizes: an asynchronous failure would otherwise surface in a later job.
            attend((query, key, key)).sum().item()
    # Third-party kernels can raise anything; xformers alone raises four types.
    except Exception as exc:
        return (str(exc) or type(exc).__name__).partition("\n")[0]
    return None


def _sdpa(tensors: _Tensors) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*tensors)


def _xformers(tensors: _Tensors) -> torch.Tensor:
    # Imported only when tried: it is not a dependency outside x86-64, and importing it may log
    # warnings.
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
