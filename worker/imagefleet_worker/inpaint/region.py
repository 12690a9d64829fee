"""The part of a picture that is drawn where only what is masked is drawn."""

from PIL import Image

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the last two are outside."""


def masked_region(mask: Image.Image, width: int, height: int, padding: int) -> Box | None:
    """The box round all that is not black, with `padding`, at the proportions of width x height.

    It is widened along one axis to those proportions, as far as the picture reaches, and shifted
    inward where it would leave it. None: all is black.
    """
    found = mask.getbbox()
    if found is None:
        return None
    left, top = max(0, found[0] - padding), max(0, found[1] - padding)
    right, bottom = min(mask.width, found[2] + padding), min(mask.height, found[3] + padding)
    proportions = width / height
    if (right - left) / (bottom - top) > proportions:
        wanted = (right - left) / proportions
        top, bottom = _widened(top, bottom, wanted, mask.height)
    else:
        wanted = (bottom - top) * proportions
        left, right = _widened(left, right, wanted, mask.width)
    return left, top, right, bottom


def _widened(start: int, end: int, wanted: float, limit: int) -> tuple[int, int]:
    """The span grown on both sides to `wanted`, the odd pixel at its end, within 0..limit."""
    more = int(wanted - (end - start))
    length = min(limit, end - start + more)
    start = max(0, min(start - more // 2, limit - length))
    return start, start + length
