"""Window order: features arranged so that each window's pixels are contiguous."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

# The indices of a 1024 x 1024 picture take 8 MB.
_CACHE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class FeatureShape:
    """The shape of features, which determines the window order."""

    batch: int
    height: int
    width: int
    window: int


def count_windows(shape: FeatureShape, shift: int) -> list[int]:
    """Count the windows of each kind: interior, right edge, bottom edge, corner."""
    down, across = shape.height // shape.window, shape.width // shape.window
    if shift == 0:
        return [shape.batch * down * across]
    counts = [(down - 1) * (across - 1), down - 1, across - 1, 1]
    return [shape.batch * count for count in counts]


def _window_order(shape: FeatureShape, shift: int) -> Tensor:
    """The pixel of each token in window order, `(B * H * W,)` int64, grouped by kind."""
    window, down, across = shape.window, shape.height // shape.window, shape.width // shape.window
    pixels = torch.arange(shape.batch * shape.height * shape.width)
    pixels = pixels.view(shape.batch, shape.height, shape.width)
    pixels = pixels.roll((-shift, -shift), (1, 2)).view(shape.batch, down, window, across, window)
    windows = pixels.transpose(2, 3)
    if shift == 0:
        return windows.reshape(-1)
    inner, last = slice(None, -1), slice(-1, None)
    kinds = [(inner, inner), (inner, last), (last, inner), (last, last)]
    return torch.cat([windows[:, rows, columns].reshape(-1) for rows, columns in kinds])


_OrderKey = tuple[FeatureShape, int | None, int | None, torch.device]


class WindowOrderCache:
    """An LRU cache of gather indices from one window order to another."""

    def __init__(self) -> None:
        self._orders: OrderedDict[_OrderKey, Tensor] = OrderedDict()

    def get(
        self,
        shape: FeatureShape,
        from_shift: int | None,
        to_shift: int | None,
        device: torch.device,
    ) -> Tensor:
        """Indices that reorder from one shift's window order to another's; None: raster order."""
        key = (shape, from_shift, to_shift, device)
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = _gather_indices(shape, from_shift, to_shift).to(device)
        self._orders.move_to_end(key)
        while len(self._orders) > 1 and self._size_bytes() > _CACHE_BYTES:
            self._orders.popitem(last=False)
        return order

    def _size_bytes(self) -> int:
        return sum(order.nbytes for order in self._orders.values())


def _gather_indices(shape: FeatureShape, from_shift: int | None, to_shift: int | None) -> Tensor:
    pixels = torch.arange(shape.batch * shape.height * shape.width)
    position = pixels
    if from_shift is not None:
        # The current position of each pixel.
        position = torch.empty_like(pixels)
        position[_window_order(shape, from_shift)] = pixels
    return position if to_shift is None else position[_window_order(shape, to_shift)]
