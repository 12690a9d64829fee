"""ParseNet, which labels the pixels of an aligned face; compatible with facexlib's weight file.

The network is PSFRGAN's (arXiv 2009.08709); names, shapes and slopes are fixed by the file.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import interpolate

LABELS = 19
"""CelebAMask-HQ's: background, skin, nose, glasses, eyes, brows, ears, mouth, lips, hair, hat,
earring, necklace, neck, cloth."""
_WIDTHS = (64, 128, 256, 256, 256)
"""Channels at each level, from full size to a sixteenth."""
_DEPTH = 10


class ParseNet(nn.Module):
    """Labels the pixels of a 512 x 512 face."""

    def __init__(self) -> None:
        super().__init__()
        down = list(pairwise(_WIDTHS))
        deepest = _WIDTHS[-1]
        self.encoder = nn.Sequential(
            _Conv(3, _WIDTHS[0]),
            *(_Block(in_channels, out_channels, "down") for in_channels, out_channels in down),
        )
        self.body = nn.Sequential(*(_Block(deepest, deepest, "same") for _ in range(_DEPTH)))
        self.decoder = nn.Sequential(
            *(
                _Block(in_channels, out_channels, "up")
                for out_channels, in_channels in reversed(down)
            )
        )
        # In the file but unused: reconstructs the face, an auxiliary output during training.
        self.out_img_conv = _Conv(_WIDTHS[0], 3)
        self.out_mask_conv = _Conv(_WIDTHS[0], LABELS)

    def forward(self, face: Tensor) -> Tensor:
        """Logits `(B, 19, 512, 512)` of a face `(B, 3, 512, 512)` in [-1, 1]."""
        features = self.encoder(face)
        return self.out_mask_conv(self.decoder(features + self.body(features)))


class _Conv(nn.Module):
    """A convolution with reflection padding, optionally a norm and a leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: str = "same",
        *,
        norm: bool = False,
        leak: bool = False,
    ) -> None:
        super().__init__()
        self.upsamples = scale == "up"
        stride = 2 if scale == "down" else 1
        self.conv2d = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, padding_mode="reflect", bias=not norm
        )
        self.norm = nn.ModuleDict({"norm": nn.BatchNorm2d(out_channels)} if norm else {})
        self.leak = nn.LeakyReLU(0.2) if leak else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        if self.upsamples:
            features = interpolate(features, scale_factor=2, mode="nearest")
        features = self.conv2d(features)
        for norm in self.norm.values():
            features = norm(features)
        return self.leak(features)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, scale: str) -> None:
        super().__init__()
        resized = scale != "same" or in_channels != out_channels
        self.shortcut_func = _Conv(in_channels, out_channels, scale) if resized else nn.Identity()
        first, second = ("up", "same") if scale == "up" else ("same", scale)
        self.conv1 = _Conv(in_channels, out_channels, first, norm=True, leak=True)
        self.conv2 = _Conv(out_channels, out_channels, second, norm=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.shortcut_func(features) + self.conv2(self.conv1(features))
