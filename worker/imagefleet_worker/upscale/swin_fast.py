"""SwinIR's transformer blocks, rewritten to move less memory; equal to spandrel's up to rounding.

spandrel's blocks copy the features some fifteen times: for the cyclic shift, the window partition,
queries, keys and values per head, and the scores three times (as in SwinIR, arXiv 2108.10257, after
Swin, arXiv 2103.14030). At other than the native size, every block also builds a mask of the whole
picture on the CPU. Here
- features stay in window order from block to block: one gather turns one block's order into the
  next one's, shift included;
- attention is one fused call, whose mask is the position bias; only windows at the picture's edge,
  which the cyclic shift fills from opposite sides, need another mask, of which there are three;
- residuals are added in place.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, pad, scaled_dot_product_attention

from imagefleet_worker.upscale.window_order import FeatureShape, WindowOrderCache, count_windows

# Fused attention on CUDA needs head sizes that are multiples of 8; SwinIR-M's heads have 30.
_HEAD_MULTIPLE = 8
# Windows per call on a CPU. Few enough that a block's intermediate results stay in the CPU's cache
# and the allocator reuses their memory: 64 at a time took 1.4 times as long, mostly page faults.
_CPU_WINDOWS = 16
# Fused attention launches a CUDA block for each window, of which a grid has 65,535 at most.
_GPU_WINDOWS = 32_768


class _Attention(Protocol):
    """The used part of spandrel's WindowAttention, which has no public name."""

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
    """The used part of spandrel's SwinTransformerBlock."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    window_size: int
    shift_size: int
    attn: _Attention
    mlp: _Mlp


def replace_blocks(model: SwinIR, compiled: bool = False) -> None:
    """Replace the blocks of `model` in place; weights are shared or copied, never changed.

    Args:
        model: modified.
        compiled: compile each block with Inductor at its first run, once for all sizes.
    """
    window_orders = WindowOrderCache()
    for layer in cast("Sequence[nn.Module]", model.layers):
        group = cast(nn.Module, layer.residual_group)
        layer.residual_group = _BlockGroup(cast("Sequence[_Block]", group.blocks), window_orders)
    if compiled:
        for module in model.modules():
            if isinstance(module, _WindowBlock):
                module.compile(dynamic=True)


class _BlockGroup(nn.Module):
    """The blocks between two convolutions; replaces spandrel's BasicLayer."""

    def __init__(self, blocks: Sequence[_Block], window_orders: WindowOrderCache) -> None:
        super().__init__()
        self._blocks = nn.ModuleList(_WindowBlock(block) for block in blocks)
        self._windows = [(block.window_size, block.shift_size) for block in blocks]
        self._window_orders = window_orders

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Map `(B, H * W, C)` features of a picture of `size` (height, width) to the same shape."""
        batch, tokens, channels = features.shape
        flat = features.reshape(batch * tokens, channels)
        # Two buffers alternate: on a CPU, fresh memory costs as much as the gather.
        spare, shape, shift = torch.empty_like(flat), None, None
        for index, (block, (window, next_shift)) in enumerate(
            zip(self._blocks, self._windows, strict=True)
        ):
            shape = FeatureShape(batch, *size, window)
            order = self._window_orders.get(shape, shift, next_shift, flat.device)
            before, flat = flat, torch.index_select(flat, 0, order, out=spare)
            spare = before if index else torch.empty_like(flat)  # the first belongs to the caller
            shift = next_shift
            _run_block(cast(_WindowBlock, block), flat, count_windows(shape, shift))
        if shape is not None:
            order = self._window_orders.get(shape, shift, None, flat.device)
            flat = torch.index_select(flat, 0, order, out=spare)
        return flat.view(batch, tokens, channels)


def _run_block(block: "_WindowBlock", flat: Tensor, kinds: Sequence[int]) -> None:
    """Run a block in place over features in its window order."""
    max_windows = _CPU_WINDOWS if flat.device.type == "cpu" else _GPU_WINDOWS
    start = 0
    for kind, windows in enumerate(kinds):
        for first in range(0, windows, max_windows):
            end = start + min(max_windows, windows - first) * block.area
            block(flat[start:end], kind)
            start = end


class _WindowBlock(nn.Module):
    """A transformer block over windows that share a mask."""

    def __init__(self, block: _Block) -> None:
        super().__init__()
        attention = block.attn
        self.area = block.window_size**2
        self._heads, self._scale = attention.num_heads, attention.scale
        head = attention.dim // attention.num_heads
        self._head_dim = -(-head // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
        self._norm1, self._norm2 = block.norm1, block.norm2
        self._fc1, self._fc2 = block.mlp.fc1, block.mlp.fc2
        # Heads are padded with zeros, which change no product.
        qkv, proj = attention.qkv, attention.proj
        padding, channels = self._head_dim - head, attention.dim
        rows = pad(qkv.weight.detach().view(3, self._heads, head, channels), (0, 0, 0, padding))
        self._qkv_weight = _frozen(rows.reshape(-1, channels))
        self._qkv_bias = None
        bias = cast("Tensor | None", qkv.bias)  # torch's types do not know that it may be None
        if bias is not None:
            padded = pad(bias.detach().view(3, self._heads, head), (0, padding))
            self._qkv_bias = _frozen(padded.reshape(-1))
        columns = pad(proj.weight.detach().view(channels, self._heads, head), (0, padding))
        self._proj_weight, self._proj_bias = _frozen(columns.reshape(channels, -1)), proj.bias
        self.register_buffer("_masks", _masks(block))
        self._masks: Tensor

    def forward(self, tokens: Tensor, kind: int) -> None:
        """Update `(windows * area, C)` tokens, window by window, in place."""
        channels = tokens.shape[1]
        normed = layer_norm(tokens, (channels,), self._norm1.weight, self._norm1.bias)
        qkv = linear(normed, self._qkv_weight, self._qkv_bias)
        queries, keys, values = qkv.view(-1, self.area, 3, self._heads, self._head_dim).permute(
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


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.contiguous(), requires_grad=False)


def _masks(block: _Block) -> Tensor:
    """The additive attention masks, `(kinds, heads, area, area)`, in the order of `count_windows`.

    The learned position bias, and -100 where query and key come from opposite sides of the picture.
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
