"""ParseNet, which tells what each pixel of an aligned face shows, as facexlib's weight file has it.

The network is PSFRGAN's (arXiv 2009.08709); names, shapes and slopes are fixed by the file.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import interpolate

LABELS = 19
"""CelebAMask-HQ's: background, skin, nose, glasses, eyes, brows, ears, mouth, lips, hair, hat,
earring, necklace, neck, cloth."""
_WIDTHS = (64, 128, 256, 256, 256)
"""Channels from full size to a sixteenth."""
_DEPTH = 10


class ParseNet(nn.Module):
    """Labels of a face of 512 x 512 pixels."""

    def __init__(self) -> None:
        super().__init__()
        down = list(pairwise(_WIDTHS))
        deepest = _WIDTHS[-1]
        self.encoder = nn.Sequential(
            _Conv(3, _WIDTHS[0]), *(_Block(given, made, "down") for given, made in down)
        )
        self.body = nn.Sequential(*(_Block(deepest, deepest, "same") for _ in range(_DEPTH)))
        self.decoder = nn.Sequential(*(_Block(given, made, "up") for made, given in reversed(down)))
        # In the file, and not asked here: the face drawn again, with which it was trained.
        self.out_img_conv = _Conv(_WIDTHS[0], 3)
        self.out_mask_conv = _Conv(_WIDTHS[0], LABELS)

    def forward(self, face: Tensor) -> Tensor:
        """Logits `(B, 19, 512, 512)` of a face `(B, 3, 512, 512)` in [-1, 1]."""
        features = self.encoder(face)
        return self.out_mask_conv(self.decoder(features + self.body(features)))


class _Conv(nn.Module):
    """A convolution with mirrored borders; the blocks' have a norm and perhaps a slope."""

    def __init__(
        self, given: int, made: int, scale: str = "same", *, norm: bool = False, leak: bool = False
    ) -> None:
        super().__init__()
        self.enlarges = scale == "up"
        stride = 2 if scale == "down" else 1
        self.conv2d = nn.Conv2d(
            given, made, 3, stride, padding=1, padding_mode="reflect", bias=not norm
        )
        self.norm = nn.ModuleDict({"norm": nn.BatchNorm2d(made)} if norm else {})
        self.leak = nn.LeakyReLU(0.2) if leak else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        if self.enlarges:
            features = interpolate(features, scale_factor=2, mode="nearest")
        features = self.conv2d(features)
        for norm in self.norm.values():
            features = norm(features)
        return self.leak(features)


class _Block(nn.Module):
    def __init__(self, given: int, made: int, scale: str) -> None:
        super().__init__()
        resized = scale != "same" or given != made
        self.shortcut_func = _Conv(given, made, scale) if resized else nn.Identity()
        first, second = ("up", "same") if scale == "up" else ("same", scale)
        self.conv1 = _Conv(given, made, first, norm=True, leak=True)
        self.conv2 = _Conv(made, made, second, norm=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.shortcut_func(features) + self.conv2(self.conv1(features))
