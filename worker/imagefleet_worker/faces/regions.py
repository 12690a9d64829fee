"""Rectangles of a picture: left, top, right, bottom, in pixels."""

from collections.abc import Iterable, Iterator

Region = tuple[int, int, int, int]

_BAND_PX = 2**18
"""The 64-bit positions of this many pixels take 4 MB, and so does each intermediate result."""


def overlap(one: Region, other: Region) -> bool:
    """Whether two regions share a pixel."""
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(
        one[3], other[3]
    )


def merge_regions(regions: Iterable[Region]) -> list[Region]:
    """Merge overlapping regions into their bounding boxes until no two overlap."""
    merged: list[Region] = []
    for region in regions:
        while overlapping := [each for each in merged if overlap(each, region)]:
            merged = [each for each in merged if each not in overlapping]
            lefts, tops, rights, bottoms = zip(region, *overlapping, strict=True)
            region = (min(lefts), min(tops), max(rights), max(bottoms))
        merged.append(region)
    return merged


def bands(region: Region) -> Iterator[Region]:
    """Split a region into bands of its full width, from top to bottom."""
    left, top, right, bottom = region
    rows = max(1, _BAND_PX // (right - left))
    for start in range(top, bottom, rows):
        yield left, start, right, min(start + rows, bottom)
