"""Nothing is lost and nothing is published twice, whatever happens to workers, Redis and store."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from imagefleet_producer import (
    GenerateRequest,
    Job,
    JobCanceled,
    JobStatus,
    JobTimeout,
    PoisonJob,
)
from imagefleet_shared.broker import connect
from imagefleet_shared.presence import ANNOUNCE_S, live_workers, withdraw
from imagefleet_shared.storage_keys import manifest_key
from localfleet.process import Process
from tests.fleet import TestFleet, wait_for

LEASE_S = 2.0


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
        "IMAGEFLEET_LEASE_S": str(LEASE_S),
    }
    fleet = TestFleet(environment, tmp_path)
    yield fleet
    fleet.close()


def enqueue(
    fleet: TestFleet,
    name: str,
    command: float | Literal["die", "hang"] = 0.05,
    time_limit_s: float | None = None,
) -> Job:
    request = GenerateRequest(prompt=f"{name} {command}", checkpoint="demo", width=64, height=64)
    return fleet.client.generate(request, time_limit_s=time_limit_s)


def wait_running(job: Job) -> None:
    wait_for(lambda: job.progress().step > 0, 20, f"{job} runs")


def test_random_kills_and_a_redis_restart_lose_nothing(
    fleet: TestFleet, redis_server: Process, say: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    say(f"CHAOS_SEED={seed}")
    rng = random.Random(seed)
    workers = [fleet.start_sleeper() for _ in range(2)]
    jobs = [enqueue(fleet, str(number)) for number in range(300)]
    kills = 0
    while kills < 10:
        time.sleep(rng.uniform(0.2, 0.8))
        victim = rng.randrange(len(workers))
        workers[victim].kill()
        kills += 1
        workers[victim].launch()
        if kills == 5:
            redis_server.restart()
    results = [job.result(timeout=240) for job in jobs]
    assert len({result.job_id for result in results}) == 300
    for result in results:
        folder = result.images[0].key.rpartition("/")[0]
        manifest = fleet.client.stored(manifest_key(folder))
        assert manifest == result.model_dump_json().encode(), "published once, as in the ledger"
    repeated = sum(count - 1 for count in Counter(fleet.runs()).values())
    say(f"300 done, 0 lost, 0 published twice; {kills} kills, {repeated} renderings repeated")


def test_a_job_five_times_as_long_as_the_lease_is_run_once(fleet: TestFleet) -> None:
    for _ in range(2):
        fleet.start_sleeper()
    result = enqueue(fleet, "long", 5 * LEASE_S).result(timeout=60)
    assert result.attempt == 1
    assert fleet.runs() == ["long"]


def test_a_killed_workers_job_starts_elsewhere_within_the_lease_and_five_seconds(
    fleet: TestFleet, say: Callable[[str], None]
) -> None:
    worker = fleet.start_sleeper()
    job = enqueue(fleet, "orphan", 30)
    wait_running(job)
    fleet.start_sleeper()
    worker.kill()
    took = wait_for(lambda: len(fleet.runs()) == 2, LEASE_S + 5, "the job starts elsewhere")
    say(f"started elsewhere after {took:.1f} s, lease {LEASE_S} s")
    assert job.progress().attempt == 2


def test_a_worker_stopped_past_its_lease_cannot_publish(fleet: TestFleet) -> None:
    worker = fleet.start_sleeper()
    job = enqueue(fleet, "stale", 2)
    wait_running(job)
    os.kill(worker.pid, signal.SIGSTOP)
    fleet.start_sleeper()
    result = job.result(timeout=30)
    assert result.attempt == 2
    os.kill(worker.pid, signal.SIGCONT)
    log = worker.log
    wait_for(lambda: "lost: another worker has the job" in log.read_text(), 20, "it gives up")
    assert job.result() == result
    folder = result.images[0].key.rpartition("/")[0]
    assert fleet.client.stored(manifest_key(folder)) == result.model_dump_json().encode()


def test_a_job_that_kills_its_worker_is_poison_and_other_jobs_finish(fleet: TestFleet) -> None:
    fleet.start_sleeper(supervised=True)
    poison = enqueue(fleet, "poison", "die")
    with pytest.raises(PoisonJob):
        poison.result(timeout=60)
    assert fleet.runs() == ["poison"] * 3
    enqueue(fleet, "after").result(timeout=60)


def test_a_job_batched_with_one_that_kills_its_worker_finishes(fleet: TestFleet) -> None:
    fleet.start_sleeper(supervised=True, max_batch_pixels=str(8 * 64 * 64))
    first = enqueue(fleet, "first", 4)
    wait_running(first)
    innocent, poison = enqueue(fleet, "innocent"), enqueue(fleet, "poison", "die")
    assert first.result(timeout=20).attempt == 1
    assert innocent.result(timeout=60).attempt > 1, "it was batched with the other"
    with pytest.raises(PoisonJob):
        poison.result(timeout=60)


def test_no_job_is_lost_while_redis_refuses_to_write(fleet: TestFleet) -> None:
    worker = fleet.start_sleeper()
    with connect(fleet.broker, retries=0) as redis:
        job = enqueue(fleet, "during", 4)
        wait_running(job)
        redis.config_set("maxmemory", 1)
        time.sleep(1)
        redis.config_set("maxmemory", 0)
        assert job.result(timeout=60)
        withdraw(redis, job_worker(fleet))
        wait_for(lambda: bool(live_workers(redis)), 2 * ANNOUNCE_S, "it announces itself")
    assert enqueue(fleet, "after").result(timeout=10)
    assert worker.alive


def test_a_stalled_engine_is_killed_and_its_neighbour_finishes(fleet: TestFleet) -> None:
    fleet.start_sleeper(supervised=True, stall_timeout_s="2")
    hanging = enqueue(fleet, "hangs", "hang")
    wait_for(lambda: fleet.runs() == ["hangs"], 20, "it hangs")
    neighbour = enqueue(fleet, "neighbour")
    with pytest.raises(PoisonJob):
        hanging.result(timeout=120)
    neighbour.result(timeout=60)


def test_a_running_job_is_canceled_within_a_second_and_the_worker_stays_warm(
    fleet: TestFleet, say: Callable[[str], None]
) -> None:
    fleet.start_sleeper()
    job = enqueue(fleet, "canceled", 60)
    wait_running(job)
    canceled_s = time.monotonic()
    job.cancel()
    with pytest.raises(JobCanceled):
        job.result(timeout=1.5)
    say(f"canceled within {time.monotonic() - canceled_s:.2f} s")
    assert enqueue(fleet, "after").result(timeout=10).worker == job_worker(fleet)


def job_worker(fleet: TestFleet) -> str:
    [worker] = fleet.client.workers()
    return worker.name


def test_a_running_job_past_its_time_limit_is_stopped(fleet: TestFleet) -> None:
    fleet.start_sleeper()
    job = enqueue(fleet, "late", 60, time_limit_s=1)
    with pytest.raises(JobTimeout):
        job.result(timeout=5)
    assert job.status() is JobStatus.FAILED


def test_sigterm_lets_short_jobs_finish_and_requeues_long_ones(fleet: TestFleet) -> None:
    worker = fleet.start_sleeper(drain_timeout_s="1")
    short = enqueue(fleet, "short", 0.5)
    wait_running(short)
    long = enqueue(fleet, "long", 20)
    os.kill(worker.pid, signal.SIGTERM)
    wait_for(lambda: not worker.alive, 15, "the worker ends")
    assert short.status() is JobStatus.SUCCEEDED
    progress = long.progress()
    assert (progress.status, progress.attempt) == (JobStatus.QUEUED, 0)
    fleet.start_sleeper()
    wait_running(long)
    assert long.progress().attempt == 1
    long.cancel()


def rendered_while_the_store_is_down(fleet: TestFleet, s3_server: Process) -> tuple[Job, Path]:
    """A job whose image waits on local disk, and its folder there."""
    job = enqueue(fleet, "patient", 2)
    wait_running(job)
    s3_server.kill()
    spool = fleet.folder / "spool" / job.id
    wait_for(spool.exists, 60, "the image is spooled to local disk")
    return job, spool


def test_images_wait_for_a_store_that_is_down_and_are_not_rendered_twice(
    fleet: TestFleet, s3_server: Process
) -> None:
    worker = fleet.start_sleeper()
    job, spool = rendered_while_the_store_is_down(fleet, s3_server)
    worker.kill()
    fleet.start_sleeper()
    s3_server.start()
    assert job.result(timeout=90).attempt == 2
    assert fleet.runs() == ["patient"]
    assert not spool.exists()


def test_a_job_canceled_while_its_images_are_spooled_leaves_none_of_them(
    fleet: TestFleet, s3_server: Process
) -> None:
    """They were deleted only after a success."""
    fleet.start_sleeper()
    job, spool = rendered_while_the_store_is_down(fleet, s3_server)
    job.cancel()
    wait_for(lambda: not spool.exists(), 60, "the image is deleted")
    assert job.status() is JobStatus.CANCELED


def test_spooled_images_of_a_requeued_job_wait_for_the_next_attempt(
    fleet: TestFleet, s3_server: Process
) -> None:
    worker = fleet.start_sleeper(drain_timeout_s="0")
    job = enqueue(fleet, "patient", 2)
    wait_running(job)
    s3_server.kill()
    spool = fleet.folder / "spool" / job.id
    wait_for(spool.exists, 60, "the image is spooled to local disk")
    os.kill(worker.pid, signal.SIGTERM)
    wait_for(lambda: job.status() is JobStatus.QUEUED, 60, "the job is requeued")
    wait_for(lambda: not worker.alive, 30, "the worker ends")
    s3_server.start()
    fleet.start_sleeper()
    assert job.result(timeout=90).attempt == 1
    assert fleet.runs() == ["patient"]
    assert not spool.exists()


def test_a_job_enqueued_while_no_worker_lives_is_done_when_one_comes(fleet: TestFleet) -> None:
    job = enqueue(fleet, "early")
    fleet.start_sleeper()
    assert job.result(timeout=20).attempt == 1
