"""The region that is repainted with `only_masked`."""

from PIL import Image

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the last two are exclusive."""


def masked_region(mask: Image.Image, width: int, height: int, padding: int) -> Box | None:
    """The bounding box of all that is not black, plus padding, at the aspect ratio width / height.

    The box is expanded along one axis to reach the aspect ratio, and shifted inward where it would
    leave the image; the image's own size limits it. Returns None if the mask is all black.
    """
    box = mask.getbbox()
    if box is None:
        return None
    left, top = max(0, box[0] - padding), max(0, box[1] - padding)
    right, bottom = min(mask.width, box[2] + padding), min(mask.height, box[3] + padding)
    aspect_ratio = width / height
    if (right - left) / (bottom - top) > aspect_ratio:
        top, bottom = _expand(top, bottom, (right - left) / aspect_ratio, mask.height)
    else:
        left, right = _expand(left, right, (bottom - top) * aspect_ratio, mask.width)
    return left, top, right, bottom


def _expand(start: int, end: int, target: float, limit: int) -> tuple[int, int]:
    """Expand a span on both sides to the target length, within 0..limit; odd pixels at the end."""
    added = int(target - (end - start))
    length = min(limit, end - start + added)
    start = max(0, min(start - added // 2, limit - length))
    return start, start + length
