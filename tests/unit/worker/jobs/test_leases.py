"""The lease keeper on a real Redis: leases are renewed, and jobs learn when they must stop."""

import time
from collections.abc import Iterator

import pytest
from PIL import Image
from redis import Redis
from redis.client import Pipeline

from imagefleet_shared import routing
from imagefleet_shared.broker import connect
from imagefleet_shared.errors import JobCanceled, JobTimeout
from imagefleet_shared.ledger import WATCHED_S, Ledger
from imagefleet_shared.records import Lease
from imagefleet_shared.requests import GenerateRequest
from imagefleet_shared.settings import BrokerSettings
from imagefleet_worker.jobs.cancellation import LeaseLost, Requeue
from imagefleet_worker.jobs.leases import RENEW_INTERVAL_S, LeasedJob, LeaseKeeper
from localfleet.process import Process
from tests.fleet import wait_for

LEASE_S = 1.0


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    settings = BrokerSettings(redis_url=redis_url, socket_timeout_s=1)
    with connect(settings, retries=1) as redis:
        yield redis


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    return Ledger(redis, record_ttl_s=60, lease_s=LEASE_S)


@pytest.fixture
def keeper(ledger: Ledger) -> Iterator[LeaseKeeper]:
    keeper = LeaseKeeper(ledger)
    keeper.start()
    yield keeper
    keeper.close()
    keeper.join(10)
    assert not keeper.is_alive()


def take_lease(ledger: Ledger, job_id: str = "job", allowed_s: float | None = None) -> Lease:
    ledger.submit(job_id, "generate", GenerateRequest(prompt="x"), "normal", allowed_s)
    lease = ledger.lease(job_id, "worker")
    assert lease is not None
    return lease


def assert_stops(leased: LeasedJob, error: type[Exception], timeout_s: float = 2) -> None:
    """The job must stop in time, and every later check raises too."""

    def stopped() -> bool:
        try:
            leased.check_canceled()
        except error:
            return True
        return False

    wait_for(stopped, timeout_s, f"{error.__name__} is raised")
    with pytest.raises(error):
        leased.report("denoise", 1, 2)


def test_a_lease_outlives_its_length_while_it_is_renewed(
    ledger: Ledger, keeper: LeaseKeeper
) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        time.sleep(2.5 * LEASE_S)
        assert ledger.reconcile() == []
        leased.renew_now()


def test_a_lease_that_is_no_longer_renewed_expires(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.keep_renewed(take_lease(ledger)):
        pass
    wait_for(lambda: bool(ledger.reconcile()), LEASE_S + 2, "the job is queued again")


def test_progress_is_sent_to_the_ledger(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        leased.report("denoise", 3, 20)
        wait_for(lambda: ledger.read("job").progress.step == 3, 10, "the step is in the ledger")
        progress = ledger.read("job").progress
        assert (progress.stage, progress.steps) == ("denoise", 20)


def test_a_cancel_is_noticed_within_a_second(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        ledger.cancel("job")
        assert_stops(leased, JobCanceled, 1)


def test_an_exceeded_time_limit_is_noticed(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.keep_renewed(take_lease(ledger, allowed_s=0.3)) as leased:
        assert_stops(leased, JobTimeout)


def test_a_lost_lease_is_noticed(ledger: Ledger, redis: Redis, keeper: LeaseKeeper) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        redis.hset(routing.job_key("job"), "token", "another's")
        assert_stops(leased, LeaseLost)


def test_renew_now_notices_a_lost_lease_at_once(ledger: Ledger, redis: Redis) -> None:
    """In a process that was stopped for a while, the keeper has not renewed anything yet."""
    leased = LeasedJob(take_lease(ledger), ledger, lambda: None)
    leased.renew_now()
    redis.hset(routing.job_key("job"), "token", "another's")
    leased.check_canceled()
    with pytest.raises(LeaseLost):
        leased.renew_now()


def test_all_jobs_are_requeued_at_a_drain(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with (
        keeper.keep_renewed(take_lease(ledger, "a")) as a,
        keeper.keep_renewed(take_lease(ledger, "b")) as b,
    ):
        keeper.requeue_all()
        assert_stops(a, Requeue)
        assert_stops(b, Requeue)


def test_a_job_leased_after_that_is_requeued_too(ledger: Ledger, keeper: LeaseKeeper) -> None:
    keeper.requeue_all()
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        time.sleep(2 * RENEW_INTERVAL_S)
        with pytest.raises(Requeue):
            leased.check_canceled()


def test_the_start_of_a_job_is_reported_before_the_next_renewal(
    ledger: Ledger, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the job crash its worker, the ledger must know that it was running."""
    monkeypatch.setattr("imagefleet_worker.jobs.leases.RENEW_INTERVAL_S", 3600)
    keeper = LeaseKeeper(ledger)
    keeper.start()
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        for stage in ("load", "queued", "text"):
            leased.report(stage, 0, 0)
            wait_for(lambda stage=stage: ledger.read("job").progress.stage == stage, 10, stage)
    keeper.close()
    keeper.join(10)


def test_the_keeper_survives_a_redis_that_refuses_to_write(
    ledger: Ledger, keeper: LeaseKeeper, redis: Redis
) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        redis.config_set("maxmemory", 1)
        leased.report("denoise", 7, 9)
        time.sleep(3 * RENEW_INTERVAL_S)
        redis.config_set("maxmemory", 0)
        wait_for(lambda: ledger.read("job").progress.step == 7, 10, "it reports again")


def test_the_first_final_state_counts(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        ledger.cancel("job")
        assert_stops(leased, JobCanceled)
        keeper.requeue_all()
        with pytest.raises(JobCanceled):
            leased.check_canceled()


def test_canceling_one_job_does_not_stop_another(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with (
        keeper.keep_renewed(take_lease(ledger, "a")) as a,
        keeper.keep_renewed(take_lease(ledger, "b")) as b,
    ):
        ledger.cancel("a")
        assert_stops(a, JobCanceled)
        b.renew_now()


def test_the_keeper_survives_a_restart_of_redis(
    ledger: Ledger, keeper: LeaseKeeper, redis_server: Process
) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        redis_server.kill()
        leased.report("denoise", 7, 9)
        redis_server.start()
        wait_for(lambda: ledger.read("job").progress.step == 7, 10, "it reports again")
        assert keeper.is_alive()


def test_scripts_are_loaded_again_after_redis_forgot_them_in_mid_call(
    ledger: Ledger, keeper: LeaseKeeper, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_scripts = Pipeline.load_scripts
    forgotten: list[bool] = []

    def load_and_forget_once(pipeline: Pipeline) -> None:
        load_scripts(pipeline)
        if not forgotten:
            forgotten.append(bool(redis.script_flush()))

    monkeypatch.setattr(Pipeline, "load_scripts", load_and_forget_once)
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        leased.report("denoise", 7, 9)
        wait_for(lambda: ledger.read("job").progress.step == 7, 10, "it reports again")
    assert forgotten


def test_a_preview_is_wanted_once_for_each_time_it_is_requested(
    ledger: Ledger, keeper: LeaseKeeper
) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        time.sleep(2 * RENEW_INTERVAL_S)
        assert not leased.preview_wanted
        assert ledger.preview("job") is None
        wait_for(lambda: leased.preview_wanted, 10, "a preview is wanted")
        leased.show_preview([Image.new("RGB", (8, 8), "teal")])
        wait_for(lambda: ledger.preview("job") is not None, 10, "the preview is there")
        wait_for(lambda: leased.preview_wanted, 10, "requested again, another one is wanted")
        leased.check_canceled()


def test_previews_stop_when_they_are_no_longer_requested(
    ledger: Ledger, keeper: LeaseKeeper, redis: Redis
) -> None:
    with keeper.keep_renewed(take_lease(ledger)) as leased:
        ledger.preview("job")
        assert 0 < redis.ttl(routing.watched_key("job")) <= WATCHED_S
        wait_for(lambda: leased.preview_wanted, 10, "a preview is wanted")
        redis.delete(routing.watched_key("job"))
        leased.show_preview([Image.new("RGB", (8, 8), "teal")])
        time.sleep(3 * RENEW_INTERVAL_S)
        assert not leased.preview_wanted
