"""One worker process per test module, because it takes seconds to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from localfleet.process import Process
from localfleet.servers import BUCKET, S3Keys
from tests.fleet import TestFleet


@pytest.fixture(scope="module")
def fleet_models(demo_models: Path) -> Path:
    """The worker's model folder; modules that need another one override it."""
    return demo_models


@pytest.fixture(scope="module")
def fleet(
    redis_server: Process,
    s3_server: Process,
    s3_keys: S3Keys,
    fleet_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TestFleet]:
    """A fleet of one real worker; `environment` has what its clients need."""
    folder = tmp_path_factory.mktemp("fleet")
    for server in (redis_server, s3_server):
        if not server.alive:
            server.start()
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    environment = {
        "IMAGEFLEET_STORAGE_URL": f"s3://{BUCKET}/{folder.name}",
        "IMAGEFLEET_S3_ENDPOINT_URL": s3_server.url,
        "IMAGEFLEET_REDIS_URL": redis_server.url,
        "IMAGEFLEET_MODELS_DIR": str(fleet_models),
        "IMAGEFLEET_SPOOL_DIR": str(folder / "spool"),
        **s3_keys.environment(),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fleet = TestFleet(environment, folder)
    try:
        fleet.start_worker(default_checkpoint="demo", device="cpu")
        yield fleet
    finally:
        fleet.close()
