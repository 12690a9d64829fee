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
    """A job of two images that takes a while."""
    request = GenerateRequest(
        prompt="a red fox", num_inference_steps=150, width=256, height=192, num_images=2
    )
    return fleet.client.generate(request)


def test_a_preview_shows_the_images_side_by_side_while_they_are_rendered(job: Job) -> None:
    wait_for(lambda: job.preview() is not None, TIMEOUT_S, "a preview is there")
    assert not job.status().ended
    preview = job.preview()
    assert preview is not None
    assert preview.size == (2 * 256, 192)
    wait_for(lambda: job.preview() != preview, TIMEOUT_S, "the next one is there")
    job.cancel()


def test_no_preview_is_published_unless_requested(fleet: TestFleet, job: Job) -> None:
    wait_for(lambda: job.progress().step > 3, TIMEOUT_S, "it runs")
    time.sleep(0.6)
    with connect(fleet.broker, retries=0) as redis:
        assert redis.exists(routing.preview_key(job.id)) == 0
    job.cancel()


def test_follow_saves_previews_to_a_file(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "preview.png"
    with ThreadPoolExecutor() as pool:
        followed = pool.submit(follow, Console(quiet=True), job, "fox", TIMEOUT_S, preview=file)
        wait_for(file.exists, TIMEOUT_S, "a preview is in the file")
        with Image.open(file) as image:
            assert image.size == (2 * 256, 192)
        job.cancel()
        followed.result()
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
