"""Failed jobs of a delivery, on a real Redis; the chaos tests cover the rest."""

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
from imagefleet_worker.jobs.encode import EncodedImage, encode_images
from imagefleet_worker.jobs.leases import LeaseKeeper
from imagefleet_worker.jobs.prefetch import PrefetchController
from imagefleet_worker.jobs.spool import Spool
from imagefleet_worker.jobs.upload_results import ResultUploader
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings

REQUEST = UpscaleRequest(images=(ImageRef(key="inputs/gone.png"),), scale=2)
IMAGES = [EncodedImage(b"a file", "png", 64, 64, 7)]


class StoreWithHook(FileStore):
    """Calls a hook whenever an object is read, which happens while a job is leased."""

    def __init__(self, root: Path, on_find: Callable[[], object]) -> None:
        super().__init__(root)
        self._on_find = on_find

    def find(self, key: str) -> bytes | None:
        self._on_find()
        return super().find(key)


def no_renderer() -> Renderer:
    raise AssertionError("nothing is rendered here")


class Fleet:
    """One job, whose image is not in the store, and a worker that delivers it."""

    def __init__(self, redis: Redis, broker: BrokerSettings, folder: Path) -> None:
        self._redis, self._broker, self._folder = redis, broker, folder
        self.ledger = Ledger(redis, record_ttl_s=60, lease_s=30)
        self.spool = Spool(folder / "spool")
        self.ledger.submit("job", "upscale", REQUEST, "normal", None)

    def lose_the_lease(self) -> None:
        """As if the worker had been silent for the lease's length; another leases the job."""
        self._redis.zadd(routing.OPEN_KEY, {"job": 0})
        self.ledger.reconcile()
        assert self.ledger.lease("job", "another")

    def deliver(self, on_find: Callable[[], object] = lambda: None) -> None:
        settings = WorkerSettings(models_dir=self._folder)
        models = ModelStore(self._folder)
        store = StoreWithHook(self._folder / "store", on_find)
        delivery = Delivery(
            worker="worker",
            celery=make_celery(self._broker),
            ledger=self.ledger,
            keeper=LeaseKeeper(self.ledger),
            resolver=Resolver(settings, models, store),
            engine=Engine(no_renderer, Heartbeat(None), 0),
            prefetch=PrefetchController(self._redis, "worker", ("upscale",), 1),
            uploader=ResultUploader(store, self.spool),
            spool=self.spool,
            encode=partial(encode_images, sha256_of=models.sha256, png_level=1),
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


def test_a_failed_job_is_counted_and_leaves_no_spooled_images(fleet: Fleet) -> None:
    before = failures()
    fleet.spool.save("job", IMAGES)
    with pytest.raises(InvalidRequest, match="not in the store"):
        fleet.deliver()
    assert fleet.ledger.read("job").status is JobStatus.FAILED
    assert failures() == before + 1
    assert fleet.spool.load("job") is None


def test_a_job_that_fails_after_its_lease_was_lost_is_not_counted_and_its_images_stay_spooled(
    fleet: Fleet,
) -> None:
    """It was counted here and again where it ended; a later attempt here may need the images."""
    before = failures()
    fleet.spool.save("job", IMAGES)
    with pytest.raises(InvalidRequest, match="not in the store"):
        fleet.deliver(on_find=fleet.lose_the_lease)
    assert fleet.ledger.read("job").status is JobStatus.RUNNING
    assert failures() == before
    assert fleet.spool.load("job") == IMAGES
