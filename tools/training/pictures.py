"""The demo model's pictures: a pictogram, natural or tinted, on a flat background."""

from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tools.training.sprites import sprite
from tools.training.subjects import BACKGROUNDS, TINTS, Colour

Style = Literal["plain", "sticker", "blueprint"]

SIDE_PX = 128
_SPRITE_PX = 102
_SPRITE_SPREAD_PX = 6
_SHIFT_PX = 5
# Brightness at the ends of the tint's ramp: factor towards black, share towards white.
_DARKEST = 0.25
_LIGHTEST = 0.85
_STICKER_BORDER_PX = 5
_BLUEPRINT: Colour = (24, 62, 140)
_BLUEPRINT_FILL = 0.3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a picture that captions describe."""

    subject: str
    background: str
    tint: str | None = None

    @property
    def thing(self) -> str:
        """The subject with its tint, as a phrase without an article."""
        return f"{self.tint} {self.subject}" if self.tint else self.subject


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Size and offset of the subject, in pixels of a 128 x 128 picture; by default centred."""

    size: float = _SPRITE_PX
    x: float = 0
    y: float = 0


def any_pose(random: Random) -> Pose:
    """A random pose, slightly off centre."""
    return Pose(
        size=_SPRITE_PX + random.uniform(-1, 1) * _SPRITE_SPREAD_PX,
        x=random.uniform(-1, 1) * _SHIFT_PX,
        y=random.uniform(-1, 1) * _SHIFT_PX,
    )


def draw(scene: Scene, pose: Pose, style: Style = "plain", side_px: int = SIDE_PX) -> Image.Image:
    """Draw a square RGB picture."""
    figure = sprite(scene.subject)
    if scene.tint:
        figure = tint_figure(figure, TINTS[scene.tint])
    layer = _place_figure(figure, pose, side_px)
    if style == "blueprint":
        return _blueprint(layer)
    if style == "sticker":
        layer = _sticker(layer, _STICKER_BORDER_PX * side_px // SIDE_PX)
    ground = Image.new("RGBA", layer.size, BACKGROUNDS[scene.background])
    return Image.alpha_composite(ground, layer).convert("RGB")


def _place_figure(figure: Image.Image, pose: Pose, side_px: int) -> Image.Image:
    """Place the figure on a transparent square."""
    factor = side_px / SIDE_PX
    size = pose.size * factor
    left = (side_px - size) / 2 + pose.x * factor
    top = (side_px - size) / 2 + pose.y * factor
    # Resized with antialiasing to a whole number of pixels, then shifted by the fraction.
    whole = round(size)
    step = whole / size
    scaled = figure.convert("RGBa").resize((whole, whole), Image.Resampling.LANCZOS)
    return scaled.transform(
        (side_px, side_px),
        Image.Transform.AFFINE,
        (step, 0, -left * step, 0, step, -top * step),
        Image.Resampling.BICUBIC,
    ).convert("RGBA")


def _sticker(layer: Image.Image, border_px: int) -> Image.Image:
    """Add a white border to the figure."""
    border = layer.getchannel("A").filter(ImageFilter.MaxFilter(2 * border_px + 1))
    border = border.filter(ImageFilter.GaussianBlur(1))
    paper = Image.new("RGBA", layer.size, (255, 255, 255))
    paper.putalpha(border)
    return Image.alpha_composite(paper, layer)


def _blueprint(layer: Image.Image) -> Image.Image:
    """Draw the figure's edges in white on blue."""
    grey = Image.alpha_composite(Image.new("RGBA", layer.size, (128, 128, 128)), layer).convert("L")
    shape = np.asarray(layer.getchannel("A"), dtype=np.float32) / 255
    luminance = np.asarray(grey, dtype=np.float32) / 255
    edges = np.zeros_like(shape)
    for plane in (shape, luminance):
        down, right = np.gradient(plane)
        edges = np.maximum(edges, np.clip(np.hypot(down, right) * 5, 0, 1))
    white = np.maximum(edges, _BLUEPRINT_FILL * luminance * shape)[..., None]
    blue = np.array(_BLUEPRINT, dtype=np.float32)
    return Image.fromarray((blue * (1 - white) + 255 * white).astype(np.uint8))


def tint_figure(figure: Image.Image, tint: Colour) -> Image.Image:
    """Tint an RGBA figure: map its luminance to a ramp from a dark to a light tint."""
    pixels = np.asarray(figure, dtype=np.float32)
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    colour = np.array(tint, dtype=np.float32)
    ramp = np.stack([colour * _DARKEST, colour, colour + (255 - colour) * _LIGHTEST])
    position = luminance * 2
    low = np.clip(position.astype(np.int64), 0, 1)
    share = (position - low)[..., None]
    shaded = ramp[low] * (1 - share) + ramp[low + 1] * share
    result: NDArray[np.uint8] = np.concatenate([shaded, pixels[..., 3:]], axis=-1).astype(np.uint8)
    return Image.fromarray(result)
