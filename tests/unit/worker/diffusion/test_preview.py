"""Previews of latents, and which jobs receive them."""

import io
import time
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from imagefleet_shared.status import Stage
from imagefleet_worker.diffusion.preview import preview
from imagefleet_worker.jobs.encode import encode_preview
from imagefleet_worker.progress import NULL_CALLBACKS, BatchProgress, NullCallbacks
from imagefleet_worker.weights.families import Family

FAMILIES: tuple[Family, ...] = get_args(Family)


class RecordingCallbacks(NullCallbacks):
    """Records the previews that a job receives."""

    def __init__(self, preview_wanted: bool = True) -> None:
        self.preview_wanted = preview_wanted
        self.previews: list[Sequence[Image.Image]] = []

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        self.previews.append(previews)


def ignore_progress(stage: Stage, step: int, steps: int) -> None:
    pass


def flat(shade: int) -> Image.Image:
    return Image.new("RGB", (4, 2), (shade, shade, shade))


def test_each_job_that_wants_previews_gets_those_of_its_own_pictures() -> None:
    pictures = [flat(shade) for shade in range(4)]
    first, third = RecordingCallbacks(), RecordingCallbacks()
    second = RecordingCallbacks(preview_wanted=False)
    job_callbacks = [(first, slice(0, 2)), (second, slice(2, 3)), (third, slice(3, 4))]
    progress = BatchProgress([ignore_progress] * 3, job_callbacks)
    requested: list[slice] = []

    def draw_preview(part: slice) -> list[Image.Image]:
        requested.append(part)
        return pictures[part]

    progress.maybe_preview(draw_preview)
    assert requested == [slice(0, 2), slice(3, 4)]
    received = (first.previews, second.previews, third.previews)
    assert received == ([pictures[:2]], [], [pictures[3:]])


def test_no_preview_is_made_if_no_job_wants_one() -> None:
    """The check takes 0.3 µs for a batch of four; a step of the smallest demo model, some 10 ms."""

    def draw_preview(_: slice) -> list[Image.Image]:
        raise AssertionError("a preview was made")

    progress = BatchProgress([ignore_progress] * 4, [(NULL_CALLBACKS, slice(0, 1))] * 4)
    started = time.perf_counter()
    for _ in range(10_000):
        progress.maybe_preview(draw_preview)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_preview_has_the_size_of_the_latents(family: Family, dtype: torch.dtype) -> None:
    latents = 10 * torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    previews = preview(latents.to(dtype), family)
    assert [one.size for one in previews] == [(5, 6)] * 2
    assert np.asarray(previews[0]).std() > 0


@pytest.mark.parametrize(
    ("family", "channel", "sign", "brighter"),
    [("sd1", 0, 1, True), ("sd1", 3, 1, False), ("sdxl", 0, 1, True), ("sdxl", 3, 1, False)],
)
def test_what_the_channels_mean(family: Family, channel: int, sign: int, brighter: bool) -> None:
    """The first channel of both VAEs is brightness; the last darkens."""
    latents = torch.zeros(2, 4, 1, 1)
    latents[1, channel] = sign
    before, after = (np.asarray(one).mean() for one in preview(latents, family))
    assert (after > before) == brighter


def test_zero_latents_are_a_middle_grey() -> None:
    for family in FAMILIES:
        [grey] = preview(torch.zeros(1, 4, 1, 1), family)
        assert all(100 < value < 160 for value in np.asarray(grey).ravel())


def test_previews_are_encoded_side_by_side_in_a_small_file() -> None:
    file = encode_preview([flat(0), flat(255)])
    with Image.open(io.BytesIO(file)) as strip:
        assert (strip.format, strip.size) == ("JPEG", (8, 2))
        left, right = strip.getpixel((1, 1)), strip.getpixel((6, 1))
    assert isinstance(left, tuple)
    assert isinstance(right, tuple)
    assert left[0] < 30 < 220 < right[0]
