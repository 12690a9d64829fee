"""The ledger's transitions, on a real Redis."""

import json
import time
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from imagefleet_shared import routing
from imagefleet_shared.broker import connect, make_celery, publish
from imagefleet_shared.errors import InvalidRequest, JobCanceled, JobNotFound, JobTimeout, PoisonJob
from imagefleet_shared.ledger import OUTAGE_S, PREVIEW_TTL_S, WATCHED_S, Ledger
from imagefleet_shared.poison import MAX_ATTEMPTS, MAX_FAULTS
from imagefleet_shared.records import Lease
from imagefleet_shared.requests import GenerateRequest
from imagefleet_shared.results import JobResult, Timings
from imagefleet_shared.settings import BrokerSettings
from imagefleet_shared.status import JobStatus, Stage
from localfleet.process import Process

REQUEST = GenerateRequest(prompt="a fox")
LEASE_S = 1.0


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with connect(BrokerSettings(redis_url=redis_url), retries=0) as client:
        yield client


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    return Ledger(redis, record_ttl_s=60, lease_s=LEASE_S)


@pytest.fixture
def long_lease_ledger(redis: Redis) -> Ledger:
    """A ledger whose leases are longer than any stall of the test machine."""
    return Ledger(redis, record_ttl_s=60, lease_s=30)


def submit(ledger: Ledger, job_id: str = "job", allowed_s: float | None = None) -> None:
    ledger.submit(job_id, "generate", REQUEST, "normal", allowed_s)


def lease(ledger: Ledger, job_id: str = "job", worker: str = "one") -> Lease:
    taken = ledger.lease(job_id, worker)
    assert taken is not None
    return taken


def make_due(redis: Redis, job_id: str = "job") -> None:
    redis.zadd(routing.OPEN_KEY, {job_id: 0})


def scripts_run(redis: Redis) -> int:
    return redis.info("commandstats")["cmdstat_evalsha"]["calls"]


def result_of(taken: Lease) -> JobResult:
    timings = Timings(queue_s=0, engine_wait_s=0, stages_s={}, batch_jobs=0, store_s=0)
    return JobResult(
        job_id=taken.job.id, request=REQUEST, images=(), timings=timings, worker="one", attempt=1
    )


def test_a_submitted_job_is_queued_with_its_request(ledger: Ledger) -> None:
    submit(ledger)
    record = ledger.read("job")
    assert record.status is JobStatus.QUEUED
    assert record.request() == REQUEST


def test_submitting_twice_under_one_id_records_one_job(ledger: Ledger, redis: Redis) -> None:
    first = ledger.submit("job", "generate", REQUEST, "normal", None)
    second = ledger.submit("job", "generate", REQUEST, "normal", None)
    assert first == second
    assert redis.zcard(routing.OPEN_KEY) == 1


def test_an_unknown_job_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(JobNotFound):
        ledger.read("nothing")
    with pytest.raises(JobNotFound):
        ledger.cancel("nothing")
    assert ledger.lease("nothing", "one") is None


def test_only_one_worker_gets_the_lease(ledger: Ledger) -> None:
    submit(ledger)
    taken = lease(ledger, worker="one")
    assert ledger.lease("job", "two") is None
    assert taken.job.progress.attempt == 1
    assert ledger.read("job").worker == "one"


def test_a_result_ends_the_job_once(ledger: Ledger, redis: Redis) -> None:
    submit(ledger)
    taken = lease(ledger)
    assert ledger.succeed(taken, result_of(taken))
    assert ledger.succeed(taken, result_of(taken)), "called again after a lost reply"
    assert not ledger.fail(taken, InvalidRequest("too late"))
    assert ledger.read("job").result() == result_of(taken)
    assert redis.zcard(routing.OPEN_KEY) == 0
    assert 0 < redis.ttl(routing.job_key("job")) <= 60


def test_a_failed_job_raises_its_own_error(ledger: Ledger) -> None:
    submit(ledger)
    ledger.fail(lease(ledger), InvalidRequest("no such thing"))
    with pytest.raises(InvalidRequest, match="no such thing"):
        ledger.read("job").result()


def test_a_renewal_reports_progress(ledger: Ledger) -> None:
    submit(ledger)
    taken = lease(ledger)
    assert ledger.renew([(taken, "denoise", 3, 20)]) == ["held"]
    progress = ledger.read("job").progress
    assert (progress.stage, progress.step, progress.steps) == ("denoise", 3, 20)


def test_a_renewed_lease_outlives_its_length(ledger: Ledger) -> None:
    submit(ledger)
    taken = lease(ledger)
    for _ in range(6):
        time.sleep(LEASE_S / 2)
        assert ledger.renew([(taken, "denoise", 1, 2)]) == ["held"]
        assert ledger.reconcile() == []


def test_an_expired_lease_is_requeued_and_its_worker_can_change_nothing(
    ledger: Ledger, redis: Redis
) -> None:
    submit(ledger)
    stale = lease(ledger, worker="one")
    make_due(redis)
    [wakeup] = ledger.reconcile()
    assert wakeup.job_id == "job"
    fresh = lease(ledger, worker="two")
    assert ledger.renew([(stale, "denoise", 1, 2)]) == ["lost"]
    assert not ledger.succeed(stale, result_of(stale))
    assert not ledger.fail(stale, InvalidRequest("stale"))
    assert ledger.release(stale) is None
    assert fresh.job.progress.attempt == 2
    assert ledger.succeed(fresh, result_of(fresh))


def test_a_job_that_loses_every_worker_is_poison(ledger: Ledger, redis: Redis) -> None:
    submit(ledger)
    for fault in range(MAX_FAULTS):
        ledger.renew([(lease(ledger), "denoise", 1, 2)])
        make_due(redis)
        assert len(ledger.reconcile()) == (1 if fault < MAX_FAULTS - 1 else 0)
    with pytest.raises(PoisonJob):
        ledger.read("job").result()
    assert redis.lrange(routing.DEAD_KEY, 0, -1) == ["job"]


def test_a_job_that_was_only_queued_in_lost_workers_is_not_at_fault(
    ledger: Ledger, redis: Redis
) -> None:
    """A job that waited beside one that hung three workers was given up with it."""
    submit(ledger)
    for attempt in range(MAX_ATTEMPTS):
        lease(ledger)
        make_due(redis)
        assert len(ledger.reconcile()) == (1 if attempt < MAX_ATTEMPTS - 1 else 0)
    with pytest.raises(PoisonJob, match=str(MAX_ATTEMPTS)):
        ledger.read("job").result()


def test_faults_and_other_attempts_are_counted_separately(ledger: Ledger, redis: Redis) -> None:
    submit(ledger)
    for _ in range(MAX_FAULTS):
        lease(ledger)
        make_due(redis)
        ledger.reconcile()
    for _ in range(MAX_FAULTS - 1):
        ledger.renew([(lease(ledger), "load", 0, 0)])
        make_due(redis)
        assert len(ledger.reconcile()) == 1
    assert ledger.read("job").status is JobStatus.QUEUED


def test_a_requeued_job_does_not_count_as_an_attempt(ledger: Ledger) -> None:
    submit(ledger)
    wakeup = ledger.release(lease(ledger))
    assert wakeup is not None
    assert lease(ledger).job.progress.attempt == 1


def test_a_queued_job_is_canceled_at_once(ledger: Ledger) -> None:
    submit(ledger)
    assert ledger.cancel("job") is JobStatus.QUEUED
    assert ledger.read("job").status is JobStatus.CANCELED
    assert ledger.lease("job", "one") is None
    with pytest.raises(JobCanceled):
        ledger.read("job").result()


def test_a_cancel_of_a_running_job_is_noticed_at_the_next_renewal(ledger: Ledger) -> None:
    submit(ledger)
    taken = lease(ledger)
    assert ledger.cancel("job") is JobStatus.RUNNING
    assert ledger.renew([(taken, "denoise", 1, 2)]) == ["canceled"]
    ledger.fail(taken, JobCanceled("job"))
    assert ledger.read("job").status is JobStatus.CANCELED


def test_a_canceled_job_whose_worker_died_ends_when_it_is_reconciled(
    ledger: Ledger, redis: Redis
) -> None:
    """A cancel that was sent to a worker that then died was lost."""
    submit(ledger)
    lease(ledger)
    ledger.cancel("job")
    make_due(redis)
    assert ledger.reconcile() == []
    assert ledger.read("job").status is JobStatus.CANCELED


def test_a_late_job_is_not_started(ledger: Ledger) -> None:
    submit(ledger, allowed_s=0.01)
    time.sleep(0.02)
    assert ledger.lease("job", "one") is None
    with pytest.raises(JobTimeout, match=r"0\.01 s"):
        ledger.read("job").result()


def test_a_time_limit_is_noticed_at_the_next_renewal(ledger: Ledger) -> None:
    submit(ledger, allowed_s=1)
    taken = lease(ledger)
    time.sleep(1.1)
    assert ledger.renew([(taken, "denoise", 1, 2)]) == ["late"]


def test_a_late_job_ends_without_a_live_worker(ledger: Ledger) -> None:
    """Only workers ended late jobs: without a live one, an app waited for ever."""
    submit(ledger, allowed_s=0.01)
    [*_, last] = ledger.watch("job", timeout_s=30)
    assert last.status is JobStatus.FAILED
    with pytest.raises(JobTimeout, match=r"0\.01 s"):
        last.result()


def test_a_late_running_job_is_ended_by_others_only_after_its_lease_expired(
    long_lease_ledger: Ledger, redis: Redis
) -> None:
    submit(long_lease_ledger, allowed_s=1)
    taken = lease(long_lease_ledger)
    time.sleep(1.1)
    assert long_lease_ledger.read_or_expire("job").status is JobStatus.RUNNING
    make_due(redis)
    assert long_lease_ledger.read_or_expire("job").status is JobStatus.FAILED
    assert long_lease_ledger.renew([(taken, "denoise", 1, 2)]) == ["lost"]
    assert redis.zcard(routing.OPEN_KEY) == 0


def test_a_canceled_job_of_a_dead_worker_ends_without_a_live_worker(
    long_lease_ledger: Ledger, redis: Redis
) -> None:
    """It stayed `running` until a worker started."""
    submit(long_lease_ledger)
    lease(long_lease_ledger)
    long_lease_ledger.cancel("job")
    assert long_lease_ledger.read_or_expire("job").status is JobStatus.RUNNING, (
        "its worker ends it while the lease lasts"
    )
    make_due(redis)
    [*_, last] = long_lease_ledger.watch("job", timeout_s=30)
    assert last.status is JobStatus.CANCELED


def test_a_job_within_its_time_limit_is_not_ended(ledger: Ledger, redis: Redis) -> None:
    submit(ledger, allowed_s=1000)
    assert ledger.read_or_expire("job").status is JobStatus.QUEUED
    lease(ledger)
    make_due(redis)
    assert ledger.read_or_expire("job").status is JobStatus.RUNNING


@pytest.mark.parametrize(("allowed_s", "checks"), [(None, [0]), (1000, range(1, 25))])
def test_watching_checks_the_time_limit_rarely_and_only_if_there_is_one(
    ledger: Ledger, redis: Redis, allowed_s: float | None, checks: Container[int]
) -> None:
    submit(ledger, allowed_s=allowed_s)
    taken, steps = lease(ledger), 30
    before = scripts_run(redis)
    watched = ledger.watch("job", timeout_s=30)
    next(watched)
    for step in range(steps):
        ledger.renew([(taken, "denoise", step, steps)])
        assert next(watched).progress.step == step
    assert scripts_run(redis) - before - steps in checks


def test_a_canceled_job_is_not_requeued(ledger: Ledger, redis: Redis) -> None:
    """Canceled just before its worker shut down, it was requeued and leased again."""
    submit(ledger)
    taken = lease(ledger)
    ledger.cancel("job")
    assert ledger.release(taken) is None
    assert ledger.read("job").status is JobStatus.CANCELED
    assert ledger.lease("job", "two") is None
    assert redis.zcard(routing.OPEN_KEY) == 0


def test_a_queued_job_that_was_canceled_while_it_ran_is_neither_leased_nor_published(
    ledger: Ledger, redis: Redis
) -> None:
    """Workers of an earlier version requeue canceled jobs."""
    for job_id in ("leased", "reconciled"):
        submit(ledger, job_id)
        redis.hset(routing.job_key(job_id), "cancel", "1")
    assert ledger.lease("leased", "one") is None
    make_due(redis, "reconciled")
    assert ledger.reconcile() == []
    for job_id in ("leased", "reconciled"):
        assert ledger.read(job_id).status is JobStatus.CANCELED


def test_a_lost_message_is_published_again_and_a_waiting_one_is_not(
    ledger: Ledger, redis: Redis
) -> None:
    celery = make_celery(BrokerSettings(redis_url=f"redis://{_address(redis)}/0"))
    for job_id in ("lost", "waiting", "last"):
        wakeup = ledger.submit(job_id, "generate", REQUEST, "normal", None)
        if job_id != "lost":
            publish(celery, wakeup)
        make_due(redis, job_id)
    assert [wakeup.job_id for wakeup in ledger.reconcile()] == ["lost"]
    assert ledger.reconcile() == [], "not due again yet"


def test_a_message_has_nothing_but_the_job_id(ledger: Ledger, redis: Redis) -> None:
    celery = make_celery(BrokerSettings(redis_url=f"redis://{_address(redis)}/0"))
    publish(celery, ledger.submit("job", "generate", REQUEST, "high", None))
    message = str(redis.lindex(routing.queue_list("generate", "high"), 0))
    assert REQUEST.prompt not in message
    assert json.loads(message)["headers"]["argsrepr"] == "['job']"


def test_watching_yields_every_status_until_the_end(ledger: Ledger) -> None:
    submit(ledger)
    watched = ledger.watch("job", timeout_s=5)
    assert next(watched).status is JobStatus.QUEUED
    taken = lease(ledger)
    assert next(watched).status is JobStatus.RUNNING
    ledger.succeed(taken, result_of(taken))
    assert [record.status for record in watched] == [JobStatus.SUCCEEDED]


def test_watching_times_out(ledger: Ledger) -> None:
    submit(ledger)
    with pytest.raises(JobTimeout):
        list(ledger.watch("job", timeout_s=0.05))


def test_watching_times_out_while_redis_is_down_too(ledger: Ledger, redis_server: Process) -> None:
    """Only the tolerated outage counted: with a timeout of 1 s it waited for a minute."""
    submit(ledger)
    watched = ledger.watch("job", timeout_s=1)
    assert next(watched).status is JobStatus.QUEUED
    redis_server.kill()
    with ThreadPoolExecutor(1) as executor, pytest.raises(RedisConnectionError):
        executor.submit(next, watched).result(timeout=OUTAGE_S / 2)


def test_an_outage_shorter_than_the_timeout_is_tolerated(
    ledger: Ledger, redis_server: Process
) -> None:
    submit(ledger)
    watched = ledger.watch("job", timeout_s=OUTAGE_S / 2)
    assert next(watched).status is JobStatus.QUEUED
    redis_server.restart()
    lease(ledger)
    assert next(watched).status is JobStatus.RUNNING


def test_one_worker_reconciles_at_a_time(ledger: Ledger) -> None:
    assert ledger.lock_reconciler("one", 1)
    assert ledger.lock_reconciler("one", 1)
    assert not ledger.lock_reconciler("two", 1)
    time.sleep(1.1)
    assert ledger.lock_reconciler("two", 1)


def test_a_preview_is_published_with_the_lease_only_and_expires(
    ledger: Ledger, redis: Redis
) -> None:
    submit(ledger)
    taken = lease(ledger)
    assert ledger.preview("job") is None
    assert ledger.publish_preview(taken, b"\xff\xd8 image")
    assert ledger.preview("job") == b"\xff\xd8 image"
    assert 0 < redis.ttl(routing.preview_key("job")) <= PREVIEW_TTL_S
    assert not ledger.publish_preview(Lease(taken.job, "another token"), b"forged")
    ledger.succeed(taken, result_of(taken))
    assert not ledger.publish_preview(taken, b"too late")
    assert ledger.preview("job") == b"\xff\xd8 image"


def test_a_requested_preview_is_noticed_for_a_while(ledger: Ledger, redis: Redis) -> None:
    submit(ledger)
    taken = lease(ledger)
    renewal: tuple[Lease, Stage, int, int] = (taken, "denoise", 1, 2)
    assert ledger.renew([renewal]) == ["held"]
    ledger.preview("job")
    assert ledger.renew([renewal]) == ["watched"]
    assert 0 < redis.ttl(routing.watched_key("job")) <= WATCHED_S
    ledger.cancel("job")
    assert ledger.renew([renewal]) == ["canceled"]


def _address(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"
