"""The lease keeper on a real Redis: jobs are renewed while held, and hear of their end."""

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
from imagefleet_worker.jobs.leases import (
    RENEW_INTERVAL_S,
    LeasedJob,
    LeaseKeeper,
    LeaseLost,
    Requeue,
)
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


def ends(leased: LeasedJob, error: type[Exception], timeout_s: float = 2) -> None:
    """The job hears of its end in time, and hears of it again whenever it asks."""

    def stopped() -> bool:
        try:
            leased.check_canceled()
        except error:
            return True
        return False

    wait_for(stopped, timeout_s, f"{error.__name__} is heard")
    with pytest.raises(error):
        leased.report("denoise", 1, 2)


def test_a_lease_outlives_its_time_while_it_is_held(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        time.sleep(2.5 * LEASE_S)
        assert ledger.reconcile() == []
        leased.renew_now()


def test_a_lease_that_is_no_longer_held_runs_out(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger)):
        pass
    wait_for(lambda: bool(ledger.reconcile()), LEASE_S + 2, "the job is free again")


def test_progress_is_passed_on(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        leased.report("denoise", 3, 20)
        wait_for(lambda: ledger.read("job").progress.step == 3, 10, "the step is told")
        progress = ledger.read("job").progress
        assert (progress.stage, progress.steps) == ("denoise", 20)


def test_a_cancel_is_heard_within_a_second(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        ledger.cancel("job")
        ends(leased, JobCanceled, 1)


def test_a_time_limit_is_heard(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger, allowed_s=0.3)) as leased:
        ends(leased, JobTimeout)


def test_a_lost_lease_is_heard(ledger: Ledger, redis: Redis, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        redis.hset(routing.job_key("job"), "token", "another's")
        ends(leased, LeaseLost)


def test_before_the_point_of_no_return_the_lease_is_asked_for_at_once(
    ledger: Ledger, redis: Redis
) -> None:
    """Given a process that was stopped for a while, no keeper has told it anything yet."""
    leased = LeasedJob(take_lease(ledger), ledger, lambda: None)
    leased.renew_now()
    redis.hset(routing.job_key("job"), "token", "another's")
    leased.check_canceled()
    with pytest.raises(LeaseLost):
        leased.renew_now()


def test_all_jobs_are_handed_back_at_a_drain(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger, "a")) as a, keeper.hold(take_lease(ledger, "b")) as b:
        keeper.requeue_all()
        ends(a, Requeue)
        ends(b, Requeue)


def test_a_job_leased_after_that_is_handed_back_too(ledger: Ledger, keeper: LeaseKeeper) -> None:
    keeper.requeue_all()
    with keeper.hold(take_lease(ledger)) as leased:
        time.sleep(2 * RENEW_INTERVAL_S)
        with pytest.raises(Requeue):
            leased.check_canceled()


def test_a_job_that_begins_is_told_of_before_the_next_beat(
    ledger: Ledger, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should it take its worker down, the ledger must know that it was at work."""
    monkeypatch.setattr("imagefleet_worker.jobs.leases.RENEW_INTERVAL_S", 3600)
    keeper = LeaseKeeper(ledger)
    keeper.start()
    with keeper.hold(take_lease(ledger)) as leased:
        for stage in ("load", "queued", "text"):
            leased.report(stage, 0, 0)
            wait_for(lambda stage=stage: ledger.read("job").progress.stage == stage, 10, stage)
    keeper.close()
    keeper.join(10)


def test_the_keeper_sits_out_a_redis_that_refuses_to_write(
    ledger: Ledger, keeper: LeaseKeeper, redis: Redis
) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        redis.config_set("maxmemory", 1)
        leased.report("denoise", 7, 9)
        time.sleep(3 * RENEW_INTERVAL_S)
        redis.config_set("maxmemory", 0)
        wait_for(lambda: ledger.read("job").progress.step == 7, 10, "it goes on telling")


def test_the_first_verdict_counts(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        ledger.cancel("job")
        ends(leased, JobCanceled)
        keeper.requeue_all()
        with pytest.raises(JobCanceled):
            leased.check_canceled()


def test_one_jobs_end_is_not_anothers(ledger: Ledger, keeper: LeaseKeeper) -> None:
    with keeper.hold(take_lease(ledger, "a")) as a, keeper.hold(take_lease(ledger, "b")) as b:
        ledger.cancel("a")
        ends(a, JobCanceled)
        b.renew_now()


def test_the_keeper_sits_out_a_restart_of_redis(
    ledger: Ledger, keeper: LeaseKeeper, redis_server: Process
) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        redis_server.kill()
        leased.report("denoise", 7, 9)
        redis_server.start()
        wait_for(lambda: ledger.read("job").progress.step == 7, 10, "it goes on telling")
        assert keeper.is_alive()


def test_a_redis_that_forgot_its_scripts_in_mid_call_is_told_them_again(
    ledger: Ledger, keeper: LeaseKeeper, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_scripts = Pipeline.load_scripts
    forgotten: list[bool] = []

    def load_and_forget_once(pipeline: Pipeline) -> None:
        load_scripts(pipeline)
        if not forgotten:
            forgotten.append(bool(redis.script_flush()))

    monkeypatch.setattr(Pipeline, "load_scripts", load_and_forget_once)
    with keeper.hold(take_lease(ledger)) as leased:
        leased.report("denoise", 7, 9)
        wait_for(lambda: ledger.read("job").progress.step == 7, 10, "it goes on telling")
    assert forgotten


def test_a_preview_is_drawn_once_for_each_time_that_somebody_asks(
    ledger: Ledger, keeper: LeaseKeeper
) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        time.sleep(2 * RENEW_INTERVAL_S)
        assert not leased.preview_wanted
        assert ledger.preview("job") is None
        wait_for(lambda: leased.preview_wanted, 10, "the asking is heard")
        leased.show_preview([Image.new("RGB", (8, 8), "teal")])
        wait_for(lambda: ledger.preview("job") is not None, 10, "the preview is there")
        wait_for(lambda: leased.preview_wanted, 10, "asked again, another one is wanted")
        leased.check_canceled()


def test_nobody_asking_stops_the_previews(
    ledger: Ledger, keeper: LeaseKeeper, redis: Redis
) -> None:
    with keeper.hold(take_lease(ledger)) as leased:
        ledger.preview("job")
        assert 0 < redis.ttl(routing.watched_key("job")) <= WATCHED_S
        wait_for(lambda: leased.preview_wanted, 10, "the asking is heard")
        redis.delete(routing.watched_key("job"))
        leased.show_preview([Image.new("RGB", (8, 8), "teal")])
        time.sleep(3 * RENEW_INTERVAL_S)
        assert not leased.preview_wanted
