"""The report of a finished job."""

from pathlib import Path

import pytest

from imagefleet_producer import GenerateRequest, ImageResult, JobResult, Timings
from imagefleet_producer.cli.output import report


def test_paths_and_urls_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """A part in brackets was read as markup and omitted."""
    folder = Path("long " * 40, "[red]")
    url = f"file:///{'store/' * 40}[bold]/0.png"
    image = ImageResult(
        key="0.png",
        url=url,
        sha256="0" * 64,
        size_bytes=1,
        width=64,
        height=32,
        seed=7,
        format="png",
    )
    times = Timings(queue_s=0, engine_wait_s=0, stages_s={"decode": 1}, batch_jobs=1, store_s=0)
    result = JobResult(
        job_id="j",
        request=GenerateRequest(prompt="a fox"),
        images=(image,),
        timings=times,
        worker="w",
        attempt=1,
    )
    report(result, [folder / "0.png"])
    file_line, url_line, _ = capsys.readouterr().out.splitlines()
    assert file_line == f"{folder}/0.png  64x32"
    assert url_line == f"  stored at {url}"
