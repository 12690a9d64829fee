"""A pipeline's weights moved between the device and host memory."""

from collections.abc import Iterable

import torch
from torch import Tensor


def move(tensors: Iterable[Tensor], target: torch.device) -> None:
    """Give each tensor memory of its own on the target, with the same bits; all of them, or none.

    The tensors stay the same objects, with the same strides. What leaves a GPU is page-locked: that
    way it comes back at the full speed of the bus.

    Raises:
        torch.OutOfMemoryError, RuntimeError: there is no room; every tensor is where it was.
    """
    pairs = [(tensor, _moved(tensor.detach(), target)) for tensor in tensors]
    if any(tensor.is_cuda for tensor, _ in pairs):
        # The copies out of the GPU must have come before anybody reads them or their source goes.
        torch.cuda.synchronize()
    for tensor, moved in pairs:
        tensor.data = moved


def _moved(tensor: Tensor, target: torch.device) -> Tensor:
    pinned = tensor.is_cuda and target.type == "cpu"
    return torch.empty_like(tensor, device=target, pin_memory=pinned).copy_(
        tensor, non_blocking=True
    )
