"""The attention masks of a SwinIR's shifted windows, made once per picture size."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

# A 512 x 512 picture's mask is 64 MiB in float32; tiles of 192 need 9 MiB.
_KEPT_BYTES = 64 * 2**20


@runtime_checkable
class _Block(Protocol):
    """What is used of spandrel's SwinTransformerBlock, which has no public name."""

    norm1: nn.LayerNorm
    window_size: int
    shift_size: int
    calculate_mask: Callable[[tuple[int, int]], Tensor]


_Key = tuple[tuple[int, int], int, int, torch.device, torch.dtype]


def cache_masks(model: SwinIR) -> None:
    """Let every block of `model` take its mask from one cache; the output stays equal bit for bit.

    Off the checkpoint's native size, spandrel's blocks build the mask anew on the CPU on every
    call, the same for all of them and all zeros in every second one (2.4 GB copied to the device
    per forward of the M model at 512 x 512), and always in float32, so that a model cast to half
    precision fails there.

    Replaces `calculate_mask` on the block objects of this model only; masks follow the weights'
    dtype and device.
    """
    masks = _Masks()
    for block in model.modules():
        if isinstance(block, _Block):
            # The block itself is not captured: a cycle would keep an evicted model's memory until
            # the next garbage collection. Casting and moving a module keep its parameter objects.
            block.calculate_mask = partial(
                masks.get, block.norm1.weight, block.window_size, block.shift_size
            )


def shift_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What to add to the attention scores of windows that a cyclic shift has filled.

    Returns:
        `(height * width / window², window², window²)`: -100 where query and key come from different
        sides of the picture, else 0.
    """

    def sides(length: int) -> Tensor:
        positions = torch.arange(length, device=device)
        return (positions >= length - window).int() + (positions >= length - shift).int()

    labels = 3 * sides(height)[:, None] + sides(width)[None, :]
    windows = labels.view(height // window, window, width // window, window)
    windows = windows.transpose(1, 2).reshape(-1, window * window)
    differs = windows[:, None, :] != windows[:, :, None]
    return torch.zeros(differs.shape, device=device, dtype=dtype).masked_fill_(differs, -100.0)


class _Masks:
    """Masks by size, shift, device and dtype; least recently used out first."""

    def __init__(self) -> None:
        self._masks: OrderedDict[_Key, Tensor] = OrderedDict()

    def get(self, weight: Tensor, window: int, shift: int, size: tuple[int, int]) -> Tensor:
        """The mask for features of `size` (height, width), of the dtype and device of `weight`."""
        if shift == 0:
            # Nothing to hide, but the caller needs a tensor: one zero, broadcast over all windows.
            return weight.new_zeros(1, 1, 1)
        key = (size, window, shift, weight.device, weight.dtype)
        mask = self._masks.get(key)
        if mask is None:
            mask = shift_mask(*size, window, shift, weight.device, weight.dtype)
            self._masks[key] = mask
        self._masks.move_to_end(key)
        # The newest always stays: the next block of this very forward asks for it.
        while len(self._masks) > 1 and sum(m.nbytes for m in self._masks.values()) > _KEPT_BYTES:
            self._masks.popitem(last=False)
        return mask
