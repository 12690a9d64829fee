"""The order of a picture's features in which every window's pixels lie together."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

# Orders of a 1024 x 1024 picture take 8 MB each.
_KEPT_BYTES = 128 * 2**20


@dataclass(frozen=True)
class FeatureShape:
    """Of features: what decides where a window's pixels are."""

    batch: int
    height: int
    width: int
    window: int


def kinds_of(shape: FeatureShape, shift: int) -> list[int]:
    """Windows of each kind: inside, at the right edge, at the bottom, in the corner."""
    down, across = shape.height // shape.window, shape.width // shape.window
    if shift == 0:
        return [shape.batch * down * across]
    counts = [(down - 1) * (across - 1), down - 1, across - 1, 1]
    return [shape.batch * count for count in counts]


def _window_order(shape: FeatureShape, shift: int) -> Tensor:
    """`(B * H * W,)` int64: which pixel each token is, windows of a kind together."""
    window, down, across = shape.window, shape.height // shape.window, shape.width // shape.window
    pixels = torch.arange(shape.batch * shape.height * shape.width)
    pixels = pixels.view(shape.batch, shape.height, shape.width)
    pixels = pixels.roll((-shift, -shift), (1, 2)).view(shape.batch, down, window, across, window)
    windows = pixels.transpose(2, 3)
    if shift == 0:
        return windows.reshape(-1)
    inside, last = slice(None, -1), slice(-1, None)
    kinds = [(inside, inside), (inside, last), (last, inside), (last, last)]
    return torch.cat([windows[:, rows, columns].reshape(-1) for rows, columns in kinds])


_Key = tuple[FeatureShape, int | None, int | None, torch.device]


class WindowOrderCache:
    """Gathers from one order of a picture's features to another; least recently used out first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, Tensor] = OrderedDict()

    def get(
        self, shape: FeatureShape, before: int | None, after: int | None, device: torch.device
    ) -> Tensor:
        """The gather between the orders of two shifts; None: the picture's rows."""
        key = (shape, before, after, device)
        order = self._kept.get(key)
        if order is None:
            order = self._kept[key] = _gather(shape, before, after).to(device)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and self._bytes() > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return order

    def _bytes(self) -> int:
        return sum(order.nbytes for order in self._kept.values())


def _gather(shape: FeatureShape, before: int | None, after: int | None) -> Tensor:
    pixels = torch.arange(shape.batch * shape.height * shape.width)
    place = pixels
    if before is not None:
        # Where each pixel is now.
        place = torch.empty_like(pixels)
        place[_window_order(shape, before)] = pixels
    return place if after is None else place[_window_order(shape, after)]
