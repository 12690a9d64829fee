"""Merging rectangles of a picture, and splitting them into bands."""

from itertools import combinations
from random import Random

from imagefleet_worker.faces.regions import Region, bands, merge_regions, overlap


def area(region: Region) -> int:
    return (region[2] - region[0]) * (region[3] - region[1])


def test_regions_overlap_where_they_share_a_pixel() -> None:
    square = (10, 10, 20, 20)
    assert overlap(square, (19, 19, 30, 30))
    assert overlap(square, (12, 0, 13, 100))
    assert not overlap(square, (20, 10, 30, 20))
    assert not overlap(square, (10, 0, 20, 10))
    assert not overlap(square, (20, 20, 30, 30))


def test_regions_that_do_not_overlap_are_not_merged() -> None:
    apart = [(0, 0, 10, 10), (10, 0, 20, 10), (0, 90, 10, 100)]
    assert merge_regions(apart) == apart


def test_merging_repeats_until_the_bounding_box_overlaps_no_region() -> None:
    left, right, corner = (0, 0, 10, 10), (20, 0, 30, 10), (28, 38, 35, 45)
    bridge = (5, 5, 25, 40)
    assert merge_regions([left, right, corner]) == [left, right, corner]
    # The bridge does not overlap the corner, but the bounding box of the merged regions does.
    assert not overlap(bridge, corner)
    assert merge_regions([left, right, corner, bridge]) == [(0, 0, 35, 45)]


def test_merged_regions_do_not_overlap_and_contain_every_region() -> None:
    random = Random(0)
    for _ in range(200):
        corners = [(random.randrange(90), random.randrange(90)) for _ in range(6)]
        regions = [(x, y, x + random.randint(1, 40), y + 9) for x, y in corners]
        boxes = merge_regions(regions)
        assert not any(overlap(*pair) for pair in combinations(boxes, 2))
        for left, top, right, bottom in regions:
            assert any(
                box[0] <= left and box[1] <= top and right <= box[2] and bottom <= box[3]
                for box in boxes
            )


def test_bands_cover_a_region_from_the_top_and_are_small() -> None:
    for region in ((3, 5, 4, 6), (100, 7, 5100, 4321), (0, 0, 300_000, 2), (9, 9, 10, 600_000)):
        parts = list(bands(region))
        assert [part[1] for part in parts] == [region[1], *(part[3] for part in parts[:-1])]
        assert parts[-1][3] == region[3]
        assert {(part[0], part[2]) for part in parts} == {(region[0], region[2])}
        assert all(area(part) <= max(2**18, region[2] - region[0]) for part in parts)
