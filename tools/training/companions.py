"""Train a wide first level of the autoencoder at the price of a narrow one.

SD's autoencoder normalises its features in 32 groups before the last convolution. With 32 channels
in full resolution each is a group of its own, and normalising takes away what a flat background
needs: its mean. (Trained that way, colours came slowly, with bright spots in the corners for a
measure.) With 96 channels in groups of three the mean survives, at nine times the work.

So two of three channels are no free features but constants, +1 and -1, against which the third is
measured. A convolution never needs to compute them: training runs on 32 channels, with a
normalisation that counts the two companions in, and `widened` writes them into the weights
afterwards.
"""

import torch
from torch import Tensor, nn

NARROW = 32
WIDE = 3 * NARROW
_CONSTANT = 1.0


class CompanionNorm(nn.Module):
    """What `GroupNorm(32)` does to a channel whose group's two others are +1 and -1."""

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
    """Replace the norms of all levels with 32 channels, in place."""
    for module in list(narrow.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm) and child.num_channels == NARROW:
                setattr(module, name, CompanionNorm(NARROW, child.eps))


def widened(narrow: dict[str, Tensor], wide: dict[str, Tensor]) -> dict[str, Tensor]:
    """The narrow model's weights in the shapes of the wide one, which then computes the same."""
    result: dict[str, Tensor] = {}
    for key, shape in ((key, tensor.shape) for key, tensor in wide.items()):
        source = narrow[key]
        if shape == source.shape:
            result[key] = source.clone()
            continue
        tensor = torch.zeros(shape)
        places = tuple(
            slice(None, None, 3) if length != own else slice(None)
            for length, own in zip(shape, source.shape, strict=True)
        )
        tensor[places] = source
        # The second convolution of a block is added to features that have the constants already.
        if key.endswith(("conv_in.bias", "conv.bias", "conv1.bias", "conv_shortcut.bias")):
            tensor[1::3], tensor[2::3] = _CONSTANT, -_CONSTANT
        result[key] = tensor
    return result
