"""Previews through a real fleet."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from imagefleet_producer import GenerateRequest, Job
from imagefleet_producer.progress import follow
from imagefleet_shared import routing
from imagefleet_shared.broker import connect
from tests.fleet import TestFleet, wait_for

TIMEOUT_S = 60


@pytest.fixture
def job(fleet: TestFleet) -> Job:
    """A job of two pictures that takes a while."""
    wanted = GenerateRequest(
        prompt="a red fox", num_inference_steps=150, width=256, height=192, num_images=2
    )
    return fleet.client.generate(wanted)


def test_a_preview_shows_the_pictures_side_by_side_while_they_are_drawn(job: Job) -> None:
    wait_for(lambda: job.preview() is not None, TIMEOUT_S, "a preview is there")
    assert not job.status().ended
    picture = job.preview()
    assert picture is not None
    assert picture.size == (2 * 256, 192)
    wait_for(lambda: job.preview() != picture, TIMEOUT_S, "the next one is there")
    job.cancel()


def test_no_preview_is_made_while_nobody_asks(fleet: TestFleet, job: Job) -> None:
    wait_for(lambda: job.progress().step > 3, TIMEOUT_S, "it runs")
    time.sleep(0.6)
    with connect(fleet.broker, retries=0) as redis:
        assert redis.exists(routing.preview_key(job.id)) == 0
    job.cancel()


def test_a_job_is_followed_into_a_file(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "preview.png"
    with ThreadPoolExecutor() as pool:
        followed = pool.submit(follow, Console(quiet=True), job, "drawing", TIMEOUT_S, preview=file)
        wait_for(file.exists, TIMEOUT_S, "a preview is in the file")
        with Image.open(file) as picture:
            assert picture.size == (2 * 256, 192)
        job.cancel()
        followed.result()
    assert [each.name for each in tmp_path.iterdir()] == ["preview.png"]
