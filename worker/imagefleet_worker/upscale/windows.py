"""SwinIR's transformer blocks, rewritten to move less memory; the output is the same to rounding.

spandrel's blocks copy the picture's features some fifteen times: a cyclic shift, cutting into
windows, head-wise copies of queries, keys and values, the scores thrice (SwinIR, arXiv 2108.10257,
follows Swin, arXiv 2103.14030, in that). Off the checkpoint's native size they also build a mask of
the whole picture on the CPU in every block. Here
- features stay in the order of the windows from block to block: one gather turns one block's order
  into the next one's, shift included;
- attention is one fused call, whose added mask is the position bias: only windows at the picture's
  edge, which the shift has filled from two sides, need another one, and there are three kinds;
- sums are made in place.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, pad, scaled_dot_product_attention

# Fused attention on CUDA wants head sizes that are multiples of it; SwinIR-M's heads have 30.
_HEAD_MULTIPLE = 8
# Windows of one call on a CPU: what a block makes of them stays in its cache: 9 MB.
_CPU_WINDOWS = 64
# Orders of a 1024 x 1024 picture take 8 MB each.
_KEPT_ORDERS_BYTES = 128 * 2**20


class _Attention(Protocol):
    """What is used of spandrel's WindowAttention, which has no public name."""

    dim: int
    num_heads: int
    scale: float
    qkv: nn.Linear
    proj: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor


class _Mlp(Protocol):
    fc1: nn.Linear
    fc2: nn.Linear


class _Block(Protocol):
    """Likewise of its SwinTransformerBlock."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    window_size: int
    shift_size: int
    attn: _Attention
    mlp: _Mlp


def speed_up(model: SwinIR) -> None:
    """Replace the blocks of `model` in place; weights are shared or copied, never changed."""
    orders = _Orders()
    for layer in cast("Sequence[nn.Module]", model.layers):
        group = cast(nn.Module, layer.residual_group)
        layer.residual_group = _Group(cast("Sequence[_Block]", group.blocks), orders)


@dataclass(frozen=True)
class _Shape:
    """Of features: what decides where a window's pixels are."""

    batch: int
    height: int
    width: int
    window: int


class _Group(nn.Module):
    """The blocks between two convolutions; takes the place of spandrel's BasicLayer."""

    def __init__(self, blocks: Sequence[_Block], orders: "_Orders") -> None:
        super().__init__()
        self._blocks = nn.ModuleList(_WindowBlock(block) for block in blocks)
        self._places = [(block.window_size, block.shift_size) for block in blocks]
        self._orders = orders

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, H * W, C)` features of a picture of `size` (height, width), likewise."""
        batch, tokens, channels = features.shape
        flat = features.reshape(batch * tokens, channels)
        shape, shift = None, None
        for block, (window, next_shift) in zip(self._blocks, self._places, strict=True):
            shape = _Shape(batch, *size, window)
            flat = flat.index_select(0, self._orders.get(shape, shift, next_shift, flat.device))
            shift = next_shift
            _run(cast(_WindowBlock, block), flat, _kinds(shape, shift))
        if shape is not None:
            flat = flat.index_select(0, self._orders.get(shape, shift, None, flat.device))
        return flat.view(batch, tokens, channels)


def _run(block: "_WindowBlock", flat: Tensor, kinds: Sequence[int]) -> None:
    """Run a block over features in its order, in place."""
    most = _CPU_WINDOWS if flat.device.type == "cpu" else max(kinds)
    start = 0
    for kind, windows in enumerate(kinds):
        for first in range(0, windows, most):
            end = start + min(most, windows - first) * block.area
            block(flat[start:end], kind)
            start = end


class _WindowBlock(nn.Module):
    """One transformer block, over windows that need the same mask."""

    def __init__(self, block: _Block) -> None:
        super().__init__()
        attention = block.attn
        self.area = block.window_size**2
        self._heads, self._scale = attention.num_heads, attention.scale
        head = attention.dim // attention.num_heads
        self._head = -(-head // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
        self._norm1, self._norm2 = block.norm1, block.norm2
        self._fc1, self._fc2 = block.mlp.fc1, block.mlp.fc2
        # Heads are widened by zeros, which change no product.
        qkv, proj = attention.qkv, attention.proj
        more, channels = self._head - head, attention.dim
        rows = pad(qkv.weight.detach().view(3, self._heads, head, channels), (0, 0, 0, more))
        self._qkv_weight = _fixed(rows.reshape(-1, channels))
        self._qkv_bias = None
        bias = cast("Tensor | None", qkv.bias)  # torch's types do not know that it may be None
        if bias is not None:
            wide = pad(bias.detach().view(3, self._heads, head), (0, more))
            self._qkv_bias = _fixed(wide.reshape(-1))
        columns = pad(proj.weight.detach().view(channels, self._heads, head), (0, more))
        self._proj_weight, self._proj_bias = _fixed(columns.reshape(channels, -1)), proj.bias
        self.register_buffer("_masks", _masks(block))
        self._masks: Tensor

    def forward(self, tokens: Tensor, kind: int) -> None:
        """Change `(windows * area, C)` tokens, window by window, in place."""
        channels = tokens.shape[1]
        normed = layer_norm(tokens, (channels,), self._norm1.weight, self._norm1.bias)
        mixed = linear(normed, self._qkv_weight, self._qkv_bias)
        queries, keys, values = mixed.view(-1, self.area, 3, self._heads, self._head).permute(
            2, 0, 3, 1, 4
        )
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=self._masks[kind].expand(len(queries), -1, -1, -1),
            scale=self._scale,
        )
        attended = attended.transpose(1, 2).reshape(len(tokens), -1)
        tokens.add_(linear(attended, self._proj_weight, self._proj_bias))
        normed = layer_norm(tokens, (channels,), self._norm2.weight, self._norm2.bias)
        tokens.add_(self._fc2(gelu(self._fc1(normed))))


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.contiguous(), requires_grad=False)


def _masks(block: _Block) -> Tensor:
    """What to add to the scores, `(kinds, heads, area, area)`, kinds as `_kinds` counts them.

    The learnt position bias; and -100 where query and key come from different sides of the picture.
    """
    area = block.window_size**2
    attention = block.attn
    table, index = (
        attention.relative_position_bias_table.detach(),
        attention.relative_position_index,
    )
    bias = table[index.view(-1)].view(area, area, -1).permute(2, 0, 1)
    if block.shift_size == 0:
        return bias[None].contiguous()
    split = torch.arange(block.window_size) >= block.window_size - block.shift_size
    whole = torch.zeros_like(split)
    masks: list[Tensor] = []
    for rows, columns in ((whole, whole), (whole, split), (split, whole), (split, split)):
        side = (2 * rows[:, None] + 1 * columns[None, :]).reshape(-1)
        masks.append(bias + torch.where(side[:, None] != side[None, :], -100.0, 0.0))
    return torch.stack(masks)


def _kinds(shape: _Shape, shift: int) -> list[int]:
    """Windows of each kind: inside, at the right edge, at the bottom, in the corner."""
    down, across = shape.height // shape.window, shape.width // shape.window
    if shift == 0:
        return [shape.batch * down * across]
    counts = [(down - 1) * (across - 1), down - 1, across - 1, 1]
    return [shape.batch * count for count in counts]


def _window_order(shape: _Shape, shift: int) -> Tensor:
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


_Key = tuple[_Shape, int | None, int | None, torch.device]


class _Orders:
    """Gathers from one order of a picture's features to another; least recently used out first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, Tensor] = OrderedDict()

    def get(
        self, shape: _Shape, before: int | None, after: int | None, device: torch.device
    ) -> Tensor:
        """The gather between the orders of two shifts; None: the picture's rows."""
        key = (shape, before, after, device)
        order = self._kept.get(key)
        if order is None:
            order = self._kept[key] = _gather(shape, before, after).to(device)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and self._bytes() > _KEPT_ORDERS_BYTES:
            self._kept.popitem(last=False)
        return order

    def _bytes(self) -> int:
        return sum(order.nbytes for order in self._kept.values())


def _gather(shape: _Shape, before: int | None, after: int | None) -> Tensor:
    pixels = torch.arange(shape.batch * shape.height * shape.width)
    place = pixels
    if before is not None:
        # Where each pixel is now.
        place = torch.empty_like(pixels)
        place[_window_order(shape, before)] = pixels
    return place if after is None else place[_window_order(shape, after)]
