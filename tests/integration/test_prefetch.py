"""Which jobs workers prefetch, and their order: a small backlog spreads, a large one batches."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from imagefleet_producer import GenerateRequest, Job, JobStatus
from imagefleet_shared.broker import connect
from imagefleet_shared.presence import ANNOUNCE_S
from imagefleet_shared.queue_depth import read_backlog
from localfleet.process import Process
from tests.fleet import TestFleet, wait_for


@pytest.fixture
def fleet(
    redis_url: str,
    s3_settings_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestFleet]:
    for name, value in s3_settings_env.items():
        monkeypatch.setenv(name, value)
    environment = {
        **s3_settings_env,
        "IMAGEFLEET_REDIS_URL": redis_url,
        "IMAGEFLEET_SPOOL_DIR": str(tmp_path / "spool"),
        "IMAGEFLEET_LEASE_S": "2",
    }
    fleet = TestFleet(environment, tmp_path)
    yield fleet
    fleet.close()


def enqueue(
    fleet: TestFleet, name: str, seconds: float, priority: Literal["high", "low"] = "high"
) -> Job:
    request = GenerateRequest(prompt=f"{name} {seconds}", checkpoint="demo", width=64, height=64)
    return fleet.client.generate(request, priority=priority)


def start(fleet: TestFleet) -> Process:
    return fleet.start_sleeper(max_batch_pixels=str(16 * 64 * 64), slots="16")


def workers_of(jobs: Iterable[Job]) -> set[str]:
    return {job.result(timeout=60).worker for job in jobs}


def wait_until_both_take_jobs(fleet: TestFleet) -> None:
    """A worker announces itself a moment before its consumer is connected."""
    wait_for(
        lambda: len(workers_of([enqueue(fleet, "early", 0.5), enqueue(fleet, "early", 0.5)])) == 2,
        60,
        "both take jobs",
    )


def live_workers(fleet: TestFleet) -> int:
    with connect(fleet.broker, retries=2) as redis:
        return read_backlog(redis, ["generate"], "another worker")["generate"].workers - 1


def test_two_jobs_go_to_two_idle_workers_and_many_go_to_both_in_batches(fleet: TestFleet) -> None:
    for _ in range(2):
        start(fleet)
    wait_until_both_take_jobs(fleet)
    for turn in range(3):
        two = [enqueue(fleet, f"two-{turn}-{index}", 2) for index in range(2)]
        assert len(workers_of(two)) == 2

    # While both are busy, a backlog builds up.
    busy = [enqueue(fleet, f"busy-{index}", 2) for index in range(2)]
    wait_for(lambda: all(job.progress().step > 0 for job in busy), 60, "both are running")
    many = [enqueue(fleet, f"many-{index}", 0.5) for index in range(32)]
    results = [job.result(timeout=60) for job in many]
    assert len({result.job_id for result in results}) == 32
    taken = Counter(result.worker for result in results)
    assert len(taken) == 2
    assert min(taken.values()) >= 8, taken
    batches = sum(1 / result.timings.batch_jobs for result in results)
    assert batches <= 8, f"{batches:.0f} batches of 32 jobs"


def test_when_a_worker_dies_the_other_takes_the_whole_backlog(fleet: TestFleet) -> None:
    victim, _ = (start(fleet) for _ in range(2))
    wait_until_both_take_jobs(fleet)
    assert live_workers(fleet) == 2
    busy = [enqueue(fleet, f"busy-{index}", 3) for index in range(2)]
    wait_for(lambda: all(job.progress().step > 0 for job in busy), 60, "both are running")
    victim.kill()
    wait_for(lambda: live_workers(fleet) == 1, 3 * ANNOUNCE_S + 15, "its announcement expires")
    many = [enqueue(fleet, f"many-{index}", 0.5) for index in range(16)]
    assert len(workers_of(many)) == 1
    assert len(workers_of(busy)) == 1, "the dead worker's job was run too"
    assert max(job.result().timings.batch_jobs for job in many) >= 8


def test_of_a_workers_leased_jobs_those_of_higher_priority_run_first(
    fleet: TestFleet,
) -> None:
    fleet.start_sleeper(max_batch_pixels="0")
    first = enqueue(fleet, "first", 3)
    wait_for(lambda: first.progress().step > 0, 60, "the first is running")
    jobs = [enqueue(fleet, "low", 0.1, "low"), enqueue(fleet, "high", 0.1)]
    wait_for(lambda: all(job.status() is JobStatus.RUNNING for job in jobs), 60, "both are leased")
    assert fleet.runs() == ["first"]
    workers_of(jobs)
    assert fleet.runs() == ["first", "high", "low"]
