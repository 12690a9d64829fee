"""Rectangles of a picture in which faces lie: left, top, right, bottom, in pixels."""

from collections.abc import Iterable, Iterator

Region = tuple[int, int, int, int]

_BAND_PX = 2**18
"""In 64 bits the positions of so many pixels take 4 MB, and as much each step on the way there."""


def overlap(one: Region, other: Region) -> bool:
    """Whether they share a pixel."""
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(
        one[3], other[3]
    )


def merge_regions(regions: Iterable[Region]) -> list[Region]:
    """Rectangles of which no two overlap and each region lies in one."""
    apart: list[Region] = []
    for region in regions:
        while met := [each for each in apart if overlap(each, region)]:
            apart = [each for each in apart if each not in met]
            lefts, tops, rights, bottoms = zip(region, *met, strict=True)
            region = (min(lefts), min(tops), max(rights), max(bottoms))
        apart.append(region)
    return apart


def bands(region: Region) -> Iterator[Region]:
    """A region in parts of its width, from the top, to be worked on one after the other."""
    left, top, right, bottom = region
    rows = max(1, _BAND_PX // (right - left))
    for start in range(top, bottom, rows):
        yield left, start, right, min(start + rows, bottom)
