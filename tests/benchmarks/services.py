"""Servers for a benchmark's fleet."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from localfleet.servers import BUCKET, S3Keys, redis_server, s3_server


@contextmanager
def servers(folder: Path, models: Path) -> Generator[dict[str, str]]:
    """Start Redis and S3; yields the environment that points to them, which is also set here."""
    keys = S3Keys.random()
    with redis_server(folder / "redis") as redis, s3_server(folder / "s3", keys) as s3:
        environment = {
            "IMAGEFLEET_REDIS_URL": redis.url,
            "IMAGEFLEET_STORAGE_URL": f"s3://{BUCKET}/bench",
            "IMAGEFLEET_S3_ENDPOINT_URL": s3.url,
            "IMAGEFLEET_MODELS_DIR": str(models),
            "IMAGEFLEET_SPOOL_DIR": str(folder / "spool"),
            **keys.environment(),
        }
        os.environ.update(environment)
        yield environment
