"""Procedurally drawn cartoon faces with boxes and five landmarks, to train the demo's detector.

The pictures also have other shapes, some of them in skin colours.
"""

from cmath import rect
from dataclasses import dataclass
from math import pi
from random import Random
from typing import Self

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]

_LAYER_PX = 320
"""Side of the layer on which a face is drawn upright."""
_MIDDLE = complex(_LAYER_PX / 2, _LAYER_PX / 2)
_MAX_TILT = 0.6
"""In radians."""


@dataclass(frozen=True)
class DrawnFace:
    """A face's position in pixels of the picture; pixel centres lie at half-integers."""

    box: Box
    """Box of the head without hair and ears."""
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
    """Draw faces of about these heights, skipping those that fit nowhere without overlap."""
    picture = _background(random, width, height)
    faces: list[DrawnFace] = []
    for size in sizes_px:
        face = _place_face(random, picture, size, [each.box for each in faces])
        if face:
            faces.append(face)
    return _soften(random, picture), faces


def _soften(random: Random, picture: Image.Image) -> Image.Image:
    """Randomly blur the picture, or reduce and enlarge it, or leave it unchanged."""
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


def _place_face(
    random: Random, picture: Image.Image, size_px: float, other_boxes: list[Box]
) -> DrawnFace | None:
    head, half, marks = _upright_face(random)
    scale = size_px / (2 * half.imag)
    scale_rotation = rect(scale, random.uniform(-_MAX_TILT, _MAX_TILT))
    # Some faces are cut by the picture's edge.
    margin = size_px * random.uniform(0.25, 0.5)
    for _ in range(20):
        centre = complex(
            random.uniform(
                min(margin, picture.width / 2), max(picture.width - margin, picture.width / 2)
            ),
            random.uniform(
                min(margin, picture.height / 2), max(picture.height - margin, picture.height / 2)
            ),
        )
        outline = [
            scale_rotation * complex(half.real * np.cos(a), half.imag * np.sin(a)) + centre
            for a in np.linspace(0, 2 * pi, 48)
        ]
        box = (
            *(min(z.real for z in outline), min(z.imag for z in outline)),
            *(max(z.real for z in outline), max(z.imag for z in outline)),
        )
        if not any(_overlap(box, other) for other in other_boxes):
            break
    else:
        return None
    inverse = 1 / scale_rotation
    shift = _MIDDLE - inverse * centre
    layer = head.transform(
        picture.size,
        Image.Transform.AFFINE,
        (inverse.real, -inverse.imag, shift.real, inverse.imag, inverse.real, shift.imag),
        Image.Resampling.BICUBIC,
    )
    picture.paste(layer, mask=layer.getchannel("A"))
    return DrawnFace(box, tuple(scale_rotation * (mark - _MIDDLE) + centre for mark in marks))


def _upright_face(random: Random) -> tuple[Image.Image, complex, tuple[complex, ...]]:
    """An upright head on a transparent layer, its half axes, and its landmarks."""
    head = Image.new("RGBA", (_LAYER_PX, _LAYER_PX))
    canvas = ImageDraw.Draw(head)
    half = complex(random.uniform(66, 88), random.uniform(88, 104))
    hair, skin = _any_colour(random), _skin(random)
    if random.random() < 0.8:
        _oval(canvas, _MIDDLE - complex(0, random.uniform(10, 30)), half * 1.15, hair)
    for side in (-1, 1):
        _oval(canvas, _MIDDLE + complex(side * half.real, 0), complex(12, 20), _darker(skin, 0.93))
    _oval(canvas, _MIDDLE, half, skin)
    if random.random() < 0.5:
        fringe = half.imag * random.uniform(0.35, 0.6)
        box = (*_corner(_MIDDLE - half), *_corner(_MIDDLE + half))
        canvas.chord(box, 180 + fringe / 2, 360 - fringe / 2, fill=hair)
    return head, half, _features(random, canvas, half, skin)


def _features(
    random: Random, canvas: ImageDraw.ImageDraw, half: complex, skin: tuple[int, int, int]
) -> tuple[complex, ...]:
    apart, down = half.real * random.uniform(0.38, 0.48), random.uniform(-22, -8)
    eyes = [_MIDDLE + complex(side * apart, down) for side in (-1, 1)]
    white, iris = random.uniform(9, 16), random.uniform(5, 8)
    dark, brow = _any_colour(random, 110), _any_colour(random, 90)
    lift, thick = random.uniform(18, 26), random.randint(3, 7)
    for eye in eyes:
        _oval(canvas, eye, complex(white * 1.25, white), (250, 250, 250))
        _oval(canvas, eye, complex(iris, iris), dark)
        ends = (*_corner(eye - complex(16, lift)), *_corner(eye + complex(16, -lift)))
        canvas.line(ends, fill=brow, width=thick)
    nose = _MIDDLE + complex(0, random.uniform(14, 24))
    _oval(canvas, nose, complex(random.uniform(6, 12), random.uniform(5, 9)), _darker(skin, 0.75))
    wide, low = random.uniform(22, 38), random.uniform(46, 58)
    mouth = [_MIDDLE + complex(side * wide, low) for side in (-1, 1)]
    bend, lips = random.uniform(2, 14), (random.randint(120, 220), 40, 60)
    under = [mouth[0], _MIDDLE + complex(0, low + bend), mouth[1]]
    if random.random() < 0.5:
        over = _MIDDLE + complex(0, low - bend / 2)
        canvas.polygon([_corner(z) for z in (*under, over)], fill=lips)
    canvas.line([_corner(z) for z in under], fill=lips, width=random.randint(4, 8), joint="curve")
    return (*eyes, nose, *mouth)


def _background(random: Random, width: int, height: int) -> Image.Image:
    ramp = Image.new("RGB", (2, 2))
    for index in range(4):
        ramp.putpixel((index % 2, index // 2), _any_colour(random))
    picture = ramp.resize((width, height), Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    for _ in range(random.randint(0, 10)):
        centre = complex(random.uniform(0, width), random.uniform(0, height))
        half = complex(random.uniform(4, width / 4), random.uniform(4, height / 4))
        colour = _skin(random) if random.random() < 0.4 else _any_colour(random)
        if random.random() < 0.6:
            _oval(canvas, centre, half, colour)
        else:
            canvas.rectangle((*_corner(centre - half), *_corner(centre + half)), fill=colour)
    grain = np.random.default_rng(random.getrandbits(32)).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def _oval(
    canvas: ImageDraw.ImageDraw, centre: complex, half: complex, colour: tuple[int, int, int]
) -> None:
    canvas.ellipse((*_corner(centre - half), *_corner(centre + half)), fill=colour)


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


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
