"""Shared fixtures, with real servers on loopback that stop with the test process."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from redis import Redis

from localfleet.process import Process
from localfleet.servers import BUCKET, S3Keys, ServerMissing, redis_server, s3_server

_SETTINGS = ("IMAGEFLEET_", "AWS_")

# No deadlines: on a busy machine hypothesis would report slowness as a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings or credentials of whoever runs it."""
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _server_or_skip(create: Callable[[], Process]) -> Process:
    """Create a server; if it is not installed, skip the test, or fail it in CI."""
    try:
        return create()
    except ServerMissing as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))


@pytest.fixture(scope="session", name="redis_server")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A Redis server for the whole session; tests may stop, kill and restart it."""
    data = tmp_path_factory.mktemp("redis")
    with _server_or_skip(lambda: redis_server(data)) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: Process) -> str:
    """URL of a running, empty Redis."""
    if not redis_server.alive:
        redis_server.start()
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def s3_keys() -> S3Keys:
    """The key pair that `s3_server` accepts."""
    return S3Keys.random()


@pytest.fixture(scope="session", name="s3_server")
def _s3_server(tmp_path_factory: pytest.TempPathFactory, s3_keys: S3Keys) -> Iterator[Process]:
    """An S3 server for the whole session; tests may stop, kill and restart it."""
    data = tmp_path_factory.mktemp("s3")
    with _server_or_skip(lambda: s3_server(data, s3_keys)) as server:
        yield server


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line even if the test passes, such as a seed or a measurement."""

    def print_uncaptured(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return print_uncaptured


@pytest.fixture
def unique_prefix() -> str:
    """A key prefix that no other test uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def s3_settings_env(s3_server: Process, s3_keys: S3Keys, unique_prefix: str) -> dict[str, str]:
    """Environment variables for an S3 store used by this test only; not set in this process."""
    if not s3_server.alive:
        s3_server.start()
    return {
        "IMAGEFLEET_STORAGE_URL": f"s3://{BUCKET}/{unique_prefix}",
        "IMAGEFLEET_S3_ENDPOINT_URL": s3_server.url,
        **s3_keys.environment(),
    }


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the demo's checkpoints (`demo`, `demo-xl`), adapters and upscalers."""
    # Imported here because they import torch, which most tests do without.
    from tools.make_demo_adapters import write_demo_adapters
    from tools.make_demo_checkpoint import write_demo_checkpoint
    from tools.make_demo_upscaler import write_demo_upscalers

    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    write_demo_checkpoint(root / "checkpoints/demo.safetensors", "sd1", seed=0)
    write_demo_checkpoint(root / "checkpoints/demo-xl.safetensors", "sdxl", seed=0)
    write_demo_adapters(root)
    write_demo_upscalers(root / "upscalers")
    return root
