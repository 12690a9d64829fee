"""Keys depend on the job alone, so that a second attempt writes to the same keys."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import get_args

import pytest

from imagefleet_shared.field_types import ImageFormat
from imagefleet_shared.storage_keys import (
    CONTENT_TYPES,
    image_key,
    input_key,
    job_folder,
    manifest_key,
)

LAST_SECOND = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_a_jobs_folder_is_named_by_the_day_of_submission_in_utc(
    monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    assert job_folder("abc", LAST_SECOND) == "2026/12/31/abc"
    assert job_folder("abc", LAST_SECOND + 1) == "2027/01/01/abc"


@pytest.mark.parametrize("image_format", get_args(ImageFormat))
def test_images_are_numbered_and_have_their_formats_suffix(image_format: ImageFormat) -> None:
    assert image_key("2026/12/31/abc", 3, image_format) == f"2026/12/31/abc/3.{image_format}"
    assert CONTENT_TYPES[image_format] == f"image/{image_format}"


def test_the_manifest_is_in_the_folder_of_the_images() -> None:
    assert manifest_key("2026/12/31/abc") == "2026/12/31/abc/job.json"


def test_the_same_input_has_the_same_key() -> None:
    digest = sha256(b"fox").hexdigest()
    assert input_key(b"fox", "png") == f"inputs/{digest}.png" == input_key(b"fox", "png")
    assert input_key(b"fix", "png") != input_key(b"fox", "png")
