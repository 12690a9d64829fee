"""The pictograms, read from `sprites.png`."""

from functools import cache
from pathlib import Path

from PIL import Image

from tools.training.subjects import SUBJECTS

ATLAS = Path(__file__).with_name("sprites.png")
COLUMNS = 9
SIDE_PX = 128


@cache
def _atlas() -> Image.Image:
    with Image.open(ATLAS) as picture:
        return picture.convert("RGBA")


@cache
def sprite(subject: str) -> Image.Image:
    """The subject's pictogram, RGBA, 128 x 128; cached, do not modify it.

    Raises:
        ValueError: no such subject.
    """
    row, column = divmod(list(SUBJECTS).index(subject), COLUMNS)
    left, top = column * SIDE_PX, row * SIDE_PX
    return _atlas().crop((left, top, left + SIDE_PX, top + SIDE_PX))
