"""Runs an image-to-image network over a picture in equal tiles, blended with linear feathers."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Window-attention networks (SwinIR and its kin) cut the picture into 8 x 8 windows. Tiles that
# begin on that grid see the windows which the whole picture would have; off it, the result differs
# far from tile borders too.
_WINDOW_PX = 8


def run_tiled(
    image: Tensor,
    scale: int,
    tile_size: int,
    tile_overlap: int,
    network: Callable[[Tensor], Tensor],
    on_tile: Callable[[int, int], None],
) -> Tensor:
    """Enlarge `image` by `network`, one tile at a time.

    All tiles of one picture have the same size, so that masks and kernels are reused: the last ones
    are shifted inward, not cut. A picture that fits one tile is one call, and the result is the
    network's, bit for bit.

    Where a network's output depends on inputs at most R pixels away, the result equals the whole
    picture's (up to float32 rounding) except within R input pixels of a tile border that lies
    inside the picture; there it is a weighted mean of what the overlapping tiles say, and a tile's
    weight falls linearly to 0 at its border. A network that pads pictures to a grid of its own
    (SwinIR: 8 px) may differ along the picture's border too.

    Memory: one float32 picture of the output size on the CPU, plus what one tile needs.

    Args:
        image: `(1, C, H, W)` in [0, 1], any float dtype, any device; only read.
        scale: what `network` multiplies height and width by.
        tile_size: longest side of a tile, in input pixels.
        tile_overlap: least number of input pixels that neighbours share; less than half of
            `tile_size`.
        network: `(1, C, h, w)` to `(1, C, h * scale, w * scale)` in [0, 1], any float dtype, any
            device.
        on_tile: called with (tiles done, tiles in all) after every tile; what it raises ends the
            run.

    Returns:
        `(1, C, H * scale, W * scale)` float32 in [0, 1], on the CPU, owned by the caller.

    Raises:
        ValueError: `tile_overlap` is negative or not less than half of `tile_size` (requests are
            checked before).
    """
    channels, height, width = image.shape[1:]
    rows = plan_axis(height, tile_size, tile_overlap)
    columns = plan_axis(width, tile_size, tile_overlap)
    tile_height, tile_width = min(tile_size, height), min(tile_size, width)
    row_weights = feather(rows, tile_height, scale)
    column_weights = feather(columns, tile_width, scale)
    blended = torch.zeros(1, channels, height * scale, width * scale)
    done = 0
    for top, down in zip(rows, row_weights, strict=True):
        for left, across in zip(columns, column_weights, strict=True):
            tile = network(image[:, :, top : top + tile_height, left : left + tile_width])
            region = blended[
                :,
                :,
                top * scale : (top + tile_height) * scale,
                left * scale : (left + tile_width) * scale,
            ]
            region.addcmul_(tile.to("cpu", torch.float32), down[:, None] * across[None, :])
            done += 1
            on_tile(done, len(rows) * len(columns))
    # The weights sum to 1 only up to rounding.
    return blended.clamp_(0, 1)


def plan_axis(length: int, tile_size: int, tile_overlap: int) -> tuple[int, ...]:
    """Where the tiles of one axis begin, in pixels, ascending, the first at 0.

    The fewest tiles that cover `length` with `tile_overlap` are spread evenly, so that the overlap
    which the count leaves over widens every feather instead of one.

    Raises:
        ValueError: see `run_tiled`.
    """
    if not 0 <= 2 * tile_overlap < tile_size:
        raise ValueError(
            f"tile_overlap {tile_overlap} is not from 0 to less than half of tile_size {tile_size}"
        )
    if length <= tile_size:
        return (0,)
    last = length - tile_size
    step = tile_size - tile_overlap
    gaps = math.ceil(last / step)
    step = min(step, math.ceil(last / gaps / _WINDOW_PX) * _WINDOW_PX)
    return tuple(min(index * step, last) for index in range(gaps + 1))


def feather(starts: Sequence[int], tile_size: int, scale: int) -> list[Tensor]:
    """The blending weights of every tile of one axis, `(tile_size * scale,)` float32 each.

    Ramps are as wide as the overlap with the neighbour; there is none at the ends of the picture.
    At every output pixel the weights of the tiles that cover it sum to 1.
    """
    centres = torch.arange(tile_size * scale, dtype=torch.float64) + 0.5
    length = (starts[-1] + tile_size) * scale
    total = torch.zeros(length, dtype=torch.float64)
    weights: list[Tensor] = []
    for index, start in enumerate(starts):
        weight = torch.ones_like(centres)
        if index > 0:
            overlap = (starts[index - 1] + tile_size - start) * scale
            weight = torch.minimum(weight, centres / max(overlap, 1))
        if index + 1 < len(starts):
            overlap = (start + tile_size - starts[index + 1]) * scale
            weight = torch.minimum(weight, centres.flip(0) / max(overlap, 1))
        total[start * scale : (start + tile_size) * scale] += weight
        weights.append(weight)
    return [
        (weight / total[start * scale : (start + tile_size) * scale]).float()
        for start, weight in zip(starts, weights, strict=True)
    ]
