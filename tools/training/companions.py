"""Train a wide first level of the autoencoder at the cost of a narrow one.

SD's autoencoder normalises its features in 32 groups before the last convolution. With 32 channels
at full resolution each channel is its own group, and normalising removes the mean, which a flat
background needs. (Trained that way, colours converged slowly, and bright spots in the corners
encoded the mean.) With 96 channels in groups of three the mean survives, at nine times the work.

So two of every three channels are the constants +1 and -1, and only the third is a feature. The
constants need not be computed: training runs on 32 channels, with a normalisation that accounts for
the two companions, and `widened` writes them into the weights
afterwards.
"""

import torch
from torch import Tensor, nn

NARROW = 32
WIDE = 3 * NARROW
_CONSTANT = 1.0


class CompanionNorm(nn.Module):
    """`GroupNorm(32)` for a channel whose two companions in its group are +1 and -1."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        mean = features.mean(dim=(2, 3), keepdim=True) / 3
        square = (features.square().mean(dim=(2, 3), keepdim=True) + 2 * _CONSTANT**2) / 3
        scale = (square - mean.square() + self.eps).rsqrt() * self.weight[:, None, None]
        return features * scale + (self.bias[:, None, None] - mean * scale)


def add_companions(narrow: nn.Module) -> None:
    """Replace the group norms of all levels with 32 channels, in place."""
    for module in list(narrow.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm) and child.num_channels == NARROW:
                setattr(module, name, CompanionNorm(NARROW, child.eps))


def widen(narrow: dict[str, Tensor], wide: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the narrow model's weights to an equivalent wide model's shapes."""
    result: dict[str, Tensor] = {}
    for key, shape in ((key, tensor.shape) for key, tensor in wide.items()):
        source = narrow[key]
        if shape == source.shape:
            result[key] = source.clone()
            continue
        tensor = torch.zeros(shape)
        slices = tuple(
            slice(None, None, 3) if length != source_length else slice(None)
            for length, source_length in zip(shape, source.shape, strict=True)
        )
        tensor[slices] = source
        # The output of a block's second convolution is added to features that have the constants.
        if key.endswith(("conv_in.bias", "conv.bias", "conv1.bias", "conv_shortcut.bias")):
            tensor[1::3], tensor[2::3] = _CONSTANT, -_CONSTANT
        result[key] = tensor
    return result
