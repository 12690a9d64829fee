"""What a worker does at the end of a job, on a real Redis; the chaos tests have the rest."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis import Redis

from imagefleet_shared import routing
from imagefleet_shared.broker import connect, make_celery
from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.requests import UpscaleRequest
from imagefleet_shared.settings import BrokerSettings
from imagefleet_shared.status import JobStatus
from imagefleet_shared.storage import FileStore
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.engine.engine import Engine, Renderer
from imagefleet_worker.heartbeat import Heartbeat
from imagefleet_worker.jobs.delivery import Delivery
from imagefleet_worker.jobs.encode import Picture, encode_pictures
from imagefleet_worker.jobs.leases import LeaseKeeper
from imagefleet_worker.jobs.prefetch import PrefetchController
from imagefleet_worker.jobs.publish import Publisher
from imagefleet_worker.jobs.spool import Spool
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings

REQUEST = UpscaleRequest(images=(ImageRef(key="inputs/gone.png"),), scale=2)
PICTURES = [Picture(b"a file", "png", 64, 64, 7)]


class StoreWithALookout(FileStore):
    """Does something whenever an object is asked for, which is while a job is leased."""

    def __init__(self, root: Path, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self._meanwhile = meanwhile

    def find(self, key: str) -> bytes | None:
        self._meanwhile()
        return super().find(key)


def no_renderer() -> Renderer:
    raise AssertionError("nothing is drawn here")


class Fleet:
    """One job, whose picture is not in the store, and a worker that takes it."""

    def __init__(self, redis: Redis, broker: BrokerSettings, folder: Path) -> None:
        self._redis, self._broker, self._folder = redis, broker, folder
        self.ledger = Ledger(redis, record_ttl_s=60, lease_s=30)
        self.spool = Spool(folder / "spool")
        self.ledger.submit("job", "upscale", REQUEST, "normal", None)

    def lose_the_lease(self) -> None:
        """As if the worker had been silent for the lease's length; another one takes the job."""
        self._redis.zadd(routing.OPEN_KEY, {"job": 0})
        self.ledger.reconcile()
        assert self.ledger.lease("job", "another")

    def deliver(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        settings = WorkerSettings(models_dir=self._folder)
        models = ModelStore(self._folder)
        store = StoreWithALookout(self._folder / "store", meanwhile)
        delivery = Delivery(
            worker="worker",
            celery=make_celery(self._broker),
            ledger=self.ledger,
            keeper=LeaseKeeper(self.ledger),
            resolver=Resolver(settings, models, store),
            engine=Engine(no_renderer, Heartbeat(None), 0),
            prefetch=PrefetchController(self._redis, "worker", ("upscale",), 1),
            publisher=Publisher(store, self.spool),
            spool=self.spool,
            encode=partial(encode_pictures, sha256_of=models.sha256, png_level=1),
            read_ahead=models.read_ahead.read,
        )
        delivery.deliver("job")


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    broker = BrokerSettings(redis_url=redis_url)
    with connect(broker, retries=0) as redis:
        yield Fleet(redis, broker, tmp_path)


def failures() -> float:
    labels = {"kind": "upscale", "outcome": "InvalidRequest"}
    return REGISTRY.get_sample_value("imagefleet_jobs_total", labels) or 0


def test_a_job_that_fails_is_counted_and_leaves_no_pictures(fleet: Fleet) -> None:
    before = failures()
    fleet.spool.save("job", PICTURES)
    with pytest.raises(InvalidRequest, match="not in the store"):
        fleet.deliver()
    assert fleet.ledger.read("job").status is JobStatus.FAILED
    assert failures() == before + 1
    assert fleet.spool.load("job") is None


def test_a_job_that_fails_once_others_have_it_is_theirs_to_count_and_its_pictures_stay(
    fleet: Fleet,
) -> None:
    """It was counted here and again where it ended; the next attempt may be here, and want them."""
    before = failures()
    fleet.spool.save("job", PICTURES)
    with pytest.raises(InvalidRequest, match="not in the store"):
        fleet.deliver(meanwhile=fleet.lose_the_lease)
    assert fleet.ledger.read("job").status is JobStatus.RUNNING
    assert failures() == before
    assert fleet.spool.load("job") == PICTURES
