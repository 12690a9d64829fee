"""Runs an image-to-image network over a picture in tiles, blended with linear feathers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

# Window-attention networks (SwinIR and its kin) cut the picture into 8 x 8 windows. Tiles that
# begin on that grid see the windows which the whole picture would have; off it, the result differs
# far from tile borders too.
_WINDOW_PX = 8

Span = tuple[int, int]
"""Where a tile begins and ends on one axis, input pixels."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut."""

    tile_size: int
    """Longest side of a tile, in input pixels, a multiple of 8."""
    tile_overlap: int
    """Least number of input pixels that neighbours share; less than half of `tile_size`."""
    batch: int = 1
    """Most tiles of one call."""


def tiled_rows(
    image: Tensor,
    scale: int,
    tiling: Tiling,
    network: Callable[[Tensor], Tensor],
    on_tile: Callable[[int, int], None],
) -> Iterator[Tensor]:
    """Enlarge `image` by `network`, tile by tile, and give the result from top to bottom.

    A picture that fits one tile is one call, and the result is the network's, bit for bit.

    Where a network's output depends on inputs at most R pixels away, the result equals the whole
    picture's (up to float32 rounding) except within R input pixels of a tile border that lies
    inside the picture; there it is a weighted mean of what the overlapping tiles say, and a tile's
    weight falls linearly to 0 at its border.

    Memory: float32 rows as high as a tile, as wide as the result, beside what a call needs.

    Args:
        image: `(1, C, H, W)` in [0, 1], any float dtype; only read.
        scale: what `network` multiplies height and width by.
        tiling: how it is cut; tiles are made smaller where as many of them cover the picture.
        network: `(B, C, h, w)` to `(B, C, h * scale, w * scale)` in [0, 1], any float dtype, on the
            device of `image`.
        on_tile: called with (tiles done, tiles in all) after every call; what it raises ends the
            run.

    Yields:
        `(1, C, rows, W * scale)` float32 in [0, 1], on the device of `image`, owned by the caller;
        together `H * scale` rows.
    """
    channels, height, width = image.shape[1:]
    rows = plan_axis(height, tiling.tile_size, tiling.tile_overlap)
    columns = plan_axis(width, tiling.tile_size, tiling.tile_overlap)
    downs, across = feather(rows, scale), dict(zip(columns, feather(columns, scale), strict=True))
    open_rows = torch.zeros(1, channels, 0, width * scale, device=image.device)
    done = 0
    for place, ((top, bottom), down) in enumerate(zip(rows, downs, strict=True)):
        band = _extended(open_rows, (bottom - top) * scale)
        for spans in _batches(columns, tiling.batch):
            tiles = torch.cat([image[:, :, top:bottom, left:right] for left, right in spans])
            for tile, span in zip(network(tiles).float(), spans, strict=True):
                weights = (down[:, None] * across[span][None, :]).to(tile.device)
                band[0, :, :, span[0] * scale : span[1] * scale].addcmul_(tile, weights)
            done += len(spans)
            on_tile(done, len(rows) * len(columns))
        # No later tile reaches above where the next ones begin.
        final = ((rows[place + 1][0] if place + 1 < len(rows) else bottom) - top) * scale
        # The weights sum to 1 only up to rounding.
        yield band[:, :, :final].clamp_(0, 1)
        open_rows = band[:, :, final:].clone()
        del band  # before the next one is made


def plan_axis(length: int, tile_size: int, tile_overlap: int) -> tuple[Span, ...]:
    """The tiles of one axis, ascending.

    The fewest tiles that cover `length` with `tile_overlap` are made equal, as small as their
    number allows, and begin on the window grid; what lies off the grid is the end of the last one.

    Raises:
        ValueError: `tile_size` is no multiple of 8, or `tile_overlap` is negative or not less than
            half of it (requests are checked before).
    """
    if tile_size % _WINDOW_PX or not 0 <= 2 * tile_overlap < tile_size:
        raise ValueError(
            f"tile_overlap {tile_overlap} is not from 0 to less than half of tile_size "
            f"{tile_size}, a multiple of {_WINDOW_PX}"
        )
    if length <= tile_size:
        return ((0, length),)
    whole = _up(length)
    overlap = _up(tile_overlap)
    count = math.ceil((whole - overlap) / (tile_size - overlap))
    size = _up(math.ceil((whole + (count - 1) * overlap) / count))
    starts = [index * (whole - size) // (count - 1) for index in range(count)]
    starts = [start // _WINDOW_PX * _WINDOW_PX for start in starts]
    return tuple((start, min(start + size, length)) for start in starts)


def feather(spans: Sequence[Span], scale: int) -> list[Tensor]:
    """The blending weights of every tile of one axis, `(length * scale,)` float32 each.

    Ramps are as wide as the overlap with the neighbour; there is none at the ends of the picture.
    At every output pixel the weights of the tiles that cover it sum to 1.
    """
    total = torch.zeros(spans[-1][1] * scale, dtype=torch.float64)
    weights: list[Tensor] = []
    for index, (start, end) in enumerate(spans):
        centres = torch.arange((end - start) * scale, dtype=torch.float64) + 0.5
        weight = torch.ones_like(centres)
        if index > 0:
            overlap = (spans[index - 1][1] - start) * scale
            weight = torch.minimum(weight, centres / max(overlap, 1))
        if index + 1 < len(spans):
            overlap = (end - spans[index + 1][0]) * scale
            weight = torch.minimum(weight, centres.flip(0) / max(overlap, 1))
        total[start * scale : end * scale] += weight
        weights.append(weight)
    return [
        (weight / total[start * scale : end * scale]).float()
        for weight, (start, end) in zip(weights, spans, strict=True)
    ]


def _batches(spans: Sequence[Span], most: int) -> Iterator[list[Span]]:
    """Neighbours of equal size, at most so many together."""
    for _, equal in groupby(spans, key=lambda span: span[1] - span[0]):
        group = list(equal)
        for first in range(0, len(group), most):
            yield group[first : first + most]


def _extended(rows: Tensor, height: int) -> Tensor:
    """The rows, followed by empty ones."""
    band = rows.new_zeros(*rows.shape[:2], height, rows.shape[3])
    band[:, :, : rows.shape[2]] = rows
    return band


def _up(length: int) -> int:
    """The least multiple of the window's side that is not less."""
    return -(-length // _WINDOW_PX) * _WINDOW_PX
