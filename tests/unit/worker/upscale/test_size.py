"""The size of an upscaled picture."""

from typing import Any

import pytest
from PIL import Image

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.upscale.size import UpscaleSize, upscale_size


@pytest.mark.parametrize(
    ("source_size", "target", "expected"),
    [
        ((101, 3), {"scale": 1.5}, (152, 4)),
        ((3, 1), {"scale": 1.01}, (3, 1)),
        ((1, 1), {"scale": 8}, (8, 8)),
        ((7, 5), {"scale": 1}, (7, 5)),
        ((200, 100), {"width": 300}, (300, 150)),
        ((200, 100), {"height": 33}, (66, 33)),
        ((4000, 1), {"width": 100}, (100, 1)),
    ],
)
def test_a_scale_or_one_side_keeps_the_aspect_ratio(
    source_size: tuple[int, int], target: dict[str, Any], expected: tuple[int, int]
) -> None:
    size = upscale_size(*source_size, UpscalePass(**target))
    assert size == UpscaleSize(*expected, *expected)


@pytest.mark.parametrize(
    ("source_size", "target", "covering"),
    [
        ((200, 100), (300, 300), (600, 300)),
        ((100, 200), (300, 300), (300, 600)),
        ((200, 100), (400, 200), (400, 200)),
        ((101, 33), (300, 98), (300, 98)),
        ((3, 1000), (64, 64), (64, 21333)),
    ],
)
def test_both_sides_are_covered_and_the_excess_is_cropped_on_request(
    source_size: tuple[int, int], target: tuple[int, int], covering: tuple[int, int]
) -> None:
    cropped = upscale_size(*source_size, UpscalePass(width=target[0], height=target[1]))
    assert cropped == UpscaleSize(*covering, *target)
    uncropped = upscale_size(
        *source_size, UpscalePass(width=target[0], height=target[1], crop=False)
    )
    assert uncropped == UpscaleSize(*covering, *covering)


def test_the_centre_is_kept() -> None:
    picture = Image.new("L", (7, 2))
    for x in range(7):
        picture.paste(x, (x, 0, x + 1, 2))
    cropped = UpscaleSize(7, 2, 4, 2).crop(picture)
    assert [cropped.getpixel((x, 0)) for x in range(4)] == [1, 2, 3, 4]
