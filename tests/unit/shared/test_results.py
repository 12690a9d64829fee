"""Results, progress and job records, as they are stored in Redis and in the manifest."""

import pytest
from pydantic import ValidationError

from imagefleet_shared.errors import InvalidRequest, JobCanceled
from imagefleet_shared.records import JobRecord, dump_error
from imagefleet_shared.request_parts import HiresPass, ImageRef, UpscalePass
from imagefleet_shared.requests import GenerateRequest, Request, UpscaleRequest
from imagefleet_shared.results import ImageResult, JobResult, Timings
from imagefleet_shared.status import JobStatus, Progress

IMAGE = ImageResult(
    key="2026/01/01/j/0.png",
    url="s3://bucket/p/2026/01/01/j/0.png",
    sha256="0" * 64,
    size_bytes=123,
    width=64,
    height=64,
    seed=7,
    format="png",
)
TIMINGS = Timings(
    queue_s=0.1,
    engine_wait_s=0,
    stages_s={"load": 1, "denoise": 2.5},
    batch_jobs=3,
    store_s=0.2,
)
GENERATE = GenerateRequest(
    prompt="fox", hires=HiresPass(scale=2), upscale=UpscalePass(scale=4), image=ImageRef(key="i")
)
UPSCALE = UpscaleRequest(images=(ImageRef(key="inputs/x.png"),), scale=3)

FIELDS = {
    "kind": "generate",
    "priority": "high",
    "request": GenerateRequest(prompt="fox").model_dump_json(),
    "status": "running",
    "stage": "denoise",
    "step": "3",
    "steps": "20",
    "attempt": "2",
    "worker": "w",
    "submitted_s": "100.5",
    "leased_s": "101.5",
    "allowed_s": "",
    "cancel": "",
}


def result(request: Request) -> JobResult:
    return JobResult(
        job_id="j", request=request, images=(IMAGE,), timings=TIMINGS, worker="w", attempt=1
    )


@pytest.mark.parametrize("request_", [GENERATE, UPSCALE], ids=["generate", "upscale"])
def test_a_result_is_read_back_from_its_manifest(request_: Request) -> None:
    original = result(request_)
    back = JobResult.model_validate_json(original.model_dump_json())
    assert back == original
    assert type(back.request) is type(request_)


def test_stages_stay_in_order() -> None:
    back = JobResult.model_validate_json(result(GENERATE).model_dump_json())
    assert list(back.timings.stages_s) == ["load", "denoise"]


def test_results_are_immutable_and_take_no_unknown_field() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        IMAGE.width = 1
    with pytest.raises(ValidationError, match="not permitted"):
        ImageResult.model_validate(IMAGE.model_dump() | {"colour": "red"})


def test_only_queued_and_running_jobs_have_not_ended() -> None:
    assert [status for status in JobStatus if not status.ended] == ["queued", "running"]


def test_a_record_is_read_from_its_fields() -> None:
    record = JobRecord.from_fields("j", FIELDS)
    assert record.progress == Progress(
        status=JobStatus.RUNNING, stage="denoise", step=3, steps=20, attempt=2
    )
    assert record.request() == GenerateRequest(prompt="fox")
    assert (record.submitted_s, record.leased_s, record.allowed_s) == (100.5, 101.5, None)


def test_a_record_of_a_failed_job_raises_the_jobs_own_error() -> None:
    record = JobRecord.from_fields("j", FIELDS | {"error": dump_error(JobCanceled("j"))})
    with pytest.raises(JobCanceled, match="job j was canceled"):
        record.result()


def test_a_record_of_a_job_that_succeeded_has_its_result() -> None:
    record = JobRecord.from_fields("j", FIELDS | {"result": result(GENERATE).model_dump_json()})
    assert record.result() == result(GENERATE)


def test_a_record_of_one_kind_is_not_read_as_the_other() -> None:
    record = JobRecord.from_fields("j", FIELDS | {"kind": "upscale"})
    with pytest.raises(InvalidRequest, match="images: Field required"):
        record.request()
