"""The wheels that an app installs, shared and producer, in an empty environment."""

import json
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from redis import Redis

from imagefleet_shared import routing
from localfleet.environment import child_environment
from localfleet.ports import free_port
from tests.fleet import REPOSITORY

HEAVY = ("torch", "torchvision", "diffusers", "transformers", "spandrel", "imagefleet_worker")

IMPORTS = f"""
import importlib.util, json, sys
import imagefleet_producer
print(json.dumps({{
    "installed": [name for name in {HEAVY!r} if importlib.util.find_spec(name)],
    "loaded": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "from": imagefleet_producer.__file__,
    "typed": importlib.util.find_spec("imagefleet_shared").submodule_search_locations[0],
}}))
"""
ENQUEUES = """
from imagefleet_producer import Client, GenerateRequest
with Client() as client:
    job = client.generate(GenerateRequest(prompt="a fox"))
    print(job.id, job.status())
"""
FAILS = """
import time
from imagefleet_producer import BrokerUnavailable, Client, GenerateRequest
with Client() as client:
    started = time.monotonic()
    try:
        client.generate(GenerateRequest(prompt="a fox"))
    except BrokerUnavailable as exc:
        print(time.monotonic() - started, exc)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheels of shared and producer, built from the working tree."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("shared", "producer"):
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=name)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with only the wheels and their dependencies."""
    folder = tmp_path_factory.mktemp("app")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--constraint", REPOSITORY / "constraints.txt", *wheels)
    return python


def run(*command: str | Path, cwd: str = "", **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=REPOSITORY / cwd,
        env=child_environment(environment),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def app(python: Path, tmp_path: Path) -> dict[str, str]:
    """Environment of an app: a store in a folder, a Redis that is down."""
    return {
        "IMAGEFLEET_STORAGE_URL": (tmp_path / "store").as_uri(),
        "IMAGEFLEET_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }


def test_shared_and_producer_build_one_wheel_each(wheels: list[Path]) -> None:
    assert [wheel.name.partition("-")[0] for wheel in wheels] == [
        "imagefleet_producer",
        "imagefleet_shared",
    ]


def test_the_import_works_without_torch(python: Path) -> None:
    found = json.loads(run(python, "-I", "-c", IMPORTS))
    assert found["installed"] == []
    assert not set(HEAVY) & set(found["loaded"])
    assert Path(found["from"]).is_relative_to(python.parents[1])
    assert (Path(found["typed"]) / "py.typed").exists()
    assert (Path(found["from"]).parent / "py.typed").exists()


def test_a_job_is_enqueued(python: Path, app: dict[str, str], redis_url: str) -> None:
    output = run(python, "-I", "-c", ENQUEUES, **app | {"IMAGEFLEET_REDIS_URL": redis_url})
    job_id, status = output.split()
    assert status == "queued"
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert redis.hget(routing.job_key(job_id), "kind") == "generate"
        assert redis.zscore(routing.OPEN_KEY, job_id) is not None
        queue = routing.queue_list(routing.QUEUES["generate"], "normal")
        messages: list[str] = redis.lrange(queue, 0, -1)  # type: ignore[assignment]
        [message] = [json.loads(text) for text in messages]
        assert message["headers"]["id"] == job_id
        assert "a fox" not in messages[0]


def test_a_redis_that_is_down_is_reported_within_two_seconds(
    python: Path, app: dict[str, str]
) -> None:
    seconds, _, message = run(python, "-I", "-c", FAILS, **app).partition(" ")
    assert float(seconds) < 2
    assert message.startswith("Redis cannot be reached")


def test_the_command_line_is_installed_and_needs_no_torch(
    python: Path, app: dict[str, str]
) -> None:
    command = python.with_name("imagefleet")
    assert "Usage:" in run(command, "--help")
    started = time.monotonic()
    done = subprocess.run(
        [command, "models"], env=child_environment(app), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "BrokerUnavailable" in done.stderr
    assert time.monotonic() - started < 10
