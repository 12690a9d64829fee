"""Running an image-to-image network over a picture in tiles, with linear blending."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

# Window-attention networks (SwinIR and others) partition the picture into 8 x 8 windows. Tiles that
# begin on that grid have the same windows as the whole picture; otherwise the result differs far
# from tile borders too.
_WINDOW_PX = 8

Span = tuple[int, int]
"""Start and end of a tile on one axis, input pixels."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is divided into tiles."""

    tile_size: int
    """Longest side of a tile, in input pixels, a multiple of 8."""
    tile_overlap: int
    """Minimum number of input pixels that neighbours share; less than half of `tile_size`."""
    batch: int = 1
    """Maximum number of tiles per call."""


def tiled_rows(
    image: Tensor,
    scale: int,
    tiling: Tiling,
    network: Callable[[Tensor], Tensor],
    on_tile: Callable[[int, int], None],
) -> Iterator[Tensor]:
    """Enlarge `image` by `network`, tile by tile, and yield the result from top to bottom.

    A picture that fits one tile takes one call, and the result is exactly the network's output.

    Where a network's output depends on inputs at most R pixels away, the result equals the whole
    picture's (up to float32 rounding) except within R input pixels of a tile border that lies
    inside the picture; there it is a weighted mean of the overlapping tiles, and a tile's weight
    falls linearly to 0 at its border.

    Memory: float32 rows as high as a tile and as wide as the result, plus that of a call.

    Args:
        image: `(1, C, H, W)` in [0, 1], any float dtype; not modified.
        scale: factor of `network` for height and width.
        tiling: tiles are reduced to the smallest size for which the same number suffices.
        network: `(B, C, h, w)` to `(B, C, h * scale, w * scale)` in [0, 1], any float dtype, on the
            device of `image`.
        on_tile: called with (tiles done, total) after every call; may raise to end the run.

    Yields:
        `(1, C, rows, W * scale)` float32 in [0, 1], on the device of `image`, owned by the caller;
        together `H * scale` rows.
    """
    channels, height, width = image.shape[1:]
    rows = plan_axis(height, tiling.tile_size, tiling.tile_overlap)
    columns = plan_axis(width, tiling.tile_size, tiling.tile_overlap)
    downs, across = (
        feather_weights(rows, scale),
        dict(zip(columns, feather_weights(columns, scale), strict=True)),
    )
    open_rows = torch.zeros(1, channels, 0, width * scale, device=image.device)
    done = 0
    for index, ((top, bottom), down) in enumerate(zip(rows, downs, strict=True)):
        band = _extend_rows(open_rows, (bottom - top) * scale)
        for spans in _batches(columns, tiling.batch):
            tiles = torch.cat([image[:, :, top:bottom, left:right] for left, right in spans])
            for tile, span in zip(network(tiles).float(), spans, strict=True):
                weights = (down[:, None] * across[span][None, :]).to(tile.device)
                band[0, :, :, span[0] * scale : span[1] * scale].addcmul_(tile, weights)
            done += len(spans)
            on_tile(done, len(rows) * len(columns))
        # No later tile reaches above the start of the next row of tiles.
        final = ((rows[index + 1][0] if index + 1 < len(rows) else bottom) - top) * scale
        # The weights sum to 1 only up to rounding.
        yield band[:, :, :final].clamp_(0, 1)
        open_rows = band[:, :, final:].clone()
        del band  # before the next one is allocated


def plan_axis(length: int, tile_size: int, tile_overlap: int) -> tuple[Span, ...]:
    """Plan the tiles of one axis, ascending.

    The fewest tiles that cover `length` with `tile_overlap` are used. They are equal, as small as
    their number allows, and begin on the window grid; only the last may end off it.

    Raises:
        ValueError: `tile_size` is not a multiple of 8, or `tile_overlap` is negative or not less
            than half of it (requests are validated before).
    """
    if tile_size % _WINDOW_PX or not 0 <= 2 * tile_overlap < tile_size:
        raise ValueError(
            f"tile_overlap {tile_overlap} is not from 0 to less than half of tile_size "
            f"{tile_size}, a multiple of {_WINDOW_PX}"
        )
    if length <= tile_size:
        return ((0, length),)
    padded = _round_up(length)
    overlap = _round_up(tile_overlap)
    count = math.ceil((padded - overlap) / (tile_size - overlap))
    size = _round_up(math.ceil((padded + (count - 1) * overlap) / count))
    starts = [index * (padded - size) // (count - 1) for index in range(count)]
    starts = [start // _WINDOW_PX * _WINDOW_PX for start in starts]
    return tuple((start, min(start + size, length)) for start in starts)


def feather_weights(spans: Sequence[Span], scale: int) -> list[Tensor]:
    """The blending weights of every tile of one axis, `(length * scale,)` float32 each.

    Ramps are as wide as the overlap with the neighbour; the picture's ends have none.
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


def _batches(spans: Sequence[Span], max_batch: int) -> Iterator[list[Span]]:
    """Group neighbours of equal size into batches."""
    for _, equal in groupby(spans, key=lambda span: span[1] - span[0]):
        group = list(equal)
        for first in range(0, len(group), max_batch):
            yield group[first : first + max_batch]


def _extend_rows(rows: Tensor, height: int) -> Tensor:
    """Append zero rows up to `height`."""
    band = rows.new_zeros(*rows.shape[:2], height, rows.shape[3])
    band[:, :, : rows.shape[2]] = rows
    return band


def _round_up(length: int) -> int:
    """Round up to a multiple of the window's side."""
    return -(-length // _WINDOW_PX) * _WINDOW_PX
