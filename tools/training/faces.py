"""Cartoon faces drawn by code, with their boxes and five landmarks: what the demo's detector sees.

Among them lie shapes that are no faces, some of them in colours of skin.
"""

from cmath import rect
from dataclasses import dataclass
from math import pi
from random import Random
from typing import Self

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]

_SHEET_PX = 320
"""Side of the sheet on which a face is drawn upright."""
_MIDDLE = complex(_SHEET_PX / 2, _SHEET_PX / 2)
_TURN = 0.6
"""Largest tilt, radians."""


@dataclass(frozen=True)
class DrawnFace:
    """Where a face is, in pixels of the picture; a pixel's middle lies at a half."""

    box: Box
    """Of the head without hair and ears."""
    landmarks: tuple[complex, ...]
    """Eyes, nose, corners of the mouth, from the viewer's left; x + iy."""

    def scaled(self, scale: float) -> Self:
        """The face in the picture resized by that factor."""
        left, top, right, bottom = self.box
        return type(self)(
            (scale * left, scale * top, scale * right, scale * bottom),
            tuple(scale * mark for mark in self.landmarks),
        )


def draw_faces(
    random: Random, width: int, height: int, sizes_px: tuple[float, ...]
) -> tuple[Image.Image, list[DrawnFace]]:
    """A picture with faces of about these heights, as far as they find room side by side."""
    picture = _background(random, width, height)
    faces: list[DrawnFace] = []
    for size in sizes_px:
        face = _placed(random, picture, size, [each.box for each in faces])
        if face:
            faces.append(face)
    return _softened(random, picture), faces


def _softened(random: Random, picture: Image.Image) -> Image.Image:
    """As it is, blurred, or as if a small picture had been enlarged."""
    kind = random.random()
    if kind < 0.2:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.5)))
    if kind < 0.5:
        share = random.uniform(0.15, 0.6)
        small = (round(share * picture.width), round(share * picture.height))
        return picture.resize(small, Image.Resampling.LANCZOS).resize(
            picture.size, Image.Resampling.LANCZOS
        )
    return picture


def _placed(
    random: Random, picture: Image.Image, size_px: float, taken: list[Box]
) -> DrawnFace | None:
    sheet, half, marks = _upright(random)
    scale = size_px / (2 * half.imag)
    turn = rect(scale, random.uniform(-_TURN, _TURN))
    # Some are cut by the picture's edge.
    reach = size_px * random.uniform(0.25, 0.5)
    for _ in range(20):
        centre = complex(
            random.uniform(
                min(reach, picture.width / 2), max(picture.width - reach, picture.width / 2)
            ),
            random.uniform(
                min(reach, picture.height / 2), max(picture.height - reach, picture.height / 2)
            ),
        )
        rim = [
            turn * complex(half.real * np.cos(a), half.imag * np.sin(a)) + centre
            for a in np.linspace(0, 2 * pi, 48)
        ]
        box = (
            *(min(z.real for z in rim), min(z.imag for z in rim)),
            *(max(z.real for z in rim), max(z.imag for z in rim)),
        )
        if not any(_touch(box, other) for other in taken):
            break
    else:
        return None
    back = 1 / turn
    shift = _MIDDLE - back * centre
    layer = sheet.transform(
        picture.size,
        Image.Transform.AFFINE,
        (back.real, -back.imag, shift.real, back.imag, back.real, shift.imag),
        Image.Resampling.BICUBIC,
    )
    picture.paste(layer, mask=layer.getchannel("A"))
    return DrawnFace(box, tuple(turn * (mark - _MIDDLE) + centre for mark in marks))


def _upright(random: Random) -> tuple[Image.Image, complex, tuple[complex, ...]]:
    """A head on a clear sheet, its half axes, and its landmarks on the sheet."""
    sheet = Image.new("RGBA", (_SHEET_PX, _SHEET_PX))
    pen = ImageDraw.Draw(sheet)
    half = complex(random.uniform(66, 88), random.uniform(88, 104))
    hair, skin = _any_colour(random), _skin(random)
    if random.random() < 0.8:
        _oval(pen, _MIDDLE - complex(0, random.uniform(10, 30)), half * 1.15, hair)
    for side in (-1, 1):
        _oval(pen, _MIDDLE + complex(side * half.real, 0), complex(12, 20), _darker(skin, 0.93))
    _oval(pen, _MIDDLE, half, skin)
    if random.random() < 0.5:
        fringe = half.imag * random.uniform(0.35, 0.6)
        box = (*_corner(_MIDDLE - half), *_corner(_MIDDLE + half))
        pen.chord(box, 180 + fringe / 2, 360 - fringe / 2, fill=hair)
    return sheet, half, _features(random, pen, half, skin)


def _features(
    random: Random, pen: ImageDraw.ImageDraw, half: complex, skin: tuple[int, int, int]
) -> tuple[complex, ...]:
    apart, down = half.real * random.uniform(0.38, 0.48), random.uniform(-22, -8)
    eyes = [_MIDDLE + complex(side * apart, down) for side in (-1, 1)]
    white, iris = random.uniform(9, 16), random.uniform(5, 8)
    dark, brow = _any_colour(random, 110), _any_colour(random, 90)
    lift, thick = random.uniform(18, 26), random.randint(3, 7)
    for eye in eyes:
        _oval(pen, eye, complex(white * 1.25, white), (250, 250, 250))
        _oval(pen, eye, complex(iris, iris), dark)
        ends = (*_corner(eye - complex(16, lift)), *_corner(eye + complex(16, -lift)))
        pen.line(ends, fill=brow, width=thick)
    nose = _MIDDLE + complex(0, random.uniform(14, 24))
    _oval(pen, nose, complex(random.uniform(6, 12), random.uniform(5, 9)), _darker(skin, 0.75))
    wide, low = random.uniform(22, 38), random.uniform(46, 58)
    mouth = [_MIDDLE + complex(side * wide, low) for side in (-1, 1)]
    bend, lips = random.uniform(2, 14), (random.randint(120, 220), 40, 60)
    under = [mouth[0], _MIDDLE + complex(0, low + bend), mouth[1]]
    if random.random() < 0.5:
        over = _MIDDLE + complex(0, low - bend / 2)
        pen.polygon([_corner(z) for z in (*under, over)], fill=lips)
    pen.line([_corner(z) for z in under], fill=lips, width=random.randint(4, 8), joint="curve")
    return (*eyes, nose, *mouth)


def _background(random: Random, width: int, height: int) -> Image.Image:
    ramp = Image.new("RGB", (2, 2))
    for place in range(4):
        ramp.putpixel((place % 2, place // 2), _any_colour(random))
    picture = ramp.resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for _ in range(random.randint(0, 10)):
        centre = complex(random.uniform(0, width), random.uniform(0, height))
        half = complex(random.uniform(4, width / 4), random.uniform(4, height / 4))
        colour = _skin(random) if random.random() < 0.4 else _any_colour(random)
        if random.random() < 0.6:
            _oval(pen, centre, half, colour)
        else:
            pen.rectangle((*_corner(centre - half), *_corner(centre + half)), fill=colour)
    grain = np.random.default_rng(random.getrandbits(32)).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def _oval(
    pen: ImageDraw.ImageDraw, centre: complex, half: complex, colour: tuple[int, int, int]
) -> None:
    pen.ellipse((*_corner(centre - half), *_corner(centre + half)), fill=colour)


def _corner(z: complex) -> tuple[float, float]:
    return z.real, z.imag


def _any_colour(random: Random, brightest: int = 255) -> tuple[int, int, int]:
    red, green, blue = (random.randint(0, brightest) for _ in range(3))
    return red, green, blue


def _skin(random: Random) -> tuple[int, int, int]:
    return _darker((255, 212, 176), random.uniform(0.4, 1))


def _darker(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(share * each) for each in colour)
    return red, green, blue


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
