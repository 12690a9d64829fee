"""Classify a picture by its nearest reference drawing and its background colour.

The features are not learned: histograms of edge directions, and colours at low resolution. The
references are drawings of all subjects, natural and in every tint.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.training.pictures import SIDE_PX, Pose, Scene, draw
from tools.training.subjects import BACKGROUNDS, SUBJECTS, TINTS, Colour

Features = NDArray[np.float32]

_CELLS = 8
_DIRECTIONS = 8
_COLOUR_CELLS = 16
# Colours have the same weight as edges.
_COLOUR_WEIGHT = 1.0
_FRAME_PX = 4


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The subject and background of a picture."""

    subject: str
    background: str
    tint: str | None


def classify(picture: Image.Image) -> Classification:
    """Find the nearest subject and the nearest background.

    Args:
        picture: RGB, of any square size; it is resized to 128 x 128.
    """
    small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    background = nearest_colour(frame_colour(small), BACKGROUNDS)
    scenes, references = _references(background)
    distances = np.square(references - features(small)).sum(axis=1)
    scene = scenes[int(distances.argmin())]
    return Classification(subject=scene.subject, background=background, tint=scene.tint)


def frame_colour(picture: Image.Image) -> Colour:
    """The median colour of the outermost pixels, which subjects do not reach."""
    pixels = np.asarray(picture)
    interior = np.zeros(pixels.shape[:2], dtype=bool)
    interior[_FRAME_PX:-_FRAME_PX, _FRAME_PX:-_FRAME_PX] = True
    red, green, blue = np.median(pixels[~interior], axis=0)
    return int(red), int(green), int(blue)


def nearest_colour(colour: Colour, names: dict[str, Colour]) -> str:
    """The name of the nearest colour in sRGB."""

    def distance(name: str) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, names[name], strict=True))

    return min(names, key=distance)


def features(picture: Image.Image) -> Features:
    """Compute a feature vector of norm about sqrt(2).

    Args:
        picture: RGB, 128 x 128.
    """
    pixels = np.asarray(picture, dtype=np.float32) / 255
    down, right = np.gradient(pixels.mean(axis=2))
    strength = np.hypot(down, right)
    direction = np.arctan2(down, right) % np.pi / np.pi * _DIRECTIONS
    low = direction.astype(np.int64) % _DIRECTIONS
    share = direction % 1
    planes = np.zeros((_DIRECTIONS, SIDE_PX, SIDE_PX), dtype=np.float32)
    rows, columns = np.indices(low.shape)
    planes[low, rows, columns] += strength * (1 - share)
    planes[(low + 1) % _DIRECTIONS, rows, columns] += strength * share
    edges = _cells(planes, _CELLS)
    # The square root reduces the effect of edge strength.
    edges = np.sqrt(edges / (edges.sum() + 1e-6))
    ground = np.array(frame_colour(picture), dtype=np.float32) / 255
    colours = _cells((pixels - ground).transpose(2, 0, 1), _COLOUR_CELLS)
    colours = colours / (np.linalg.norm(colours) + 1e-6)
    return np.concatenate([edges.ravel(), _COLOUR_WEIGHT * colours.ravel()]).astype(np.float32)


def _cells(planes: NDArray[np.floating], cells: int) -> NDArray[np.float32]:
    """Average `(planes, side, side)` over overlapping cells: `(planes, cells, cells)`."""
    shrunk = [
        Image.fromarray(plane).resize((cells, cells), Image.Resampling.HAMMING) for plane in planes
    ]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in shrunk])


@cache
def _references(background: str) -> tuple[list[Scene], Features]:
    scenes = [
        Scene(subject=subject, background=background, tint=tint)
        for subject in SUBJECTS
        for tint in (None, *TINTS)
        if tint != background
    ]
    return scenes, np.stack([features(draw(scene, Pose())) for scene in scenes])
