"""docker-compose.yml and worker/Dockerfile, checked without a Docker engine."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
DOCKERFILE = REPOSITORY / "worker/Dockerfile"
SECRETS = ("REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "FLOWER_USER", "FLOWER_PASSWORD")

# docker-compose 1.29.2 asks for PyYAML<6, which no longer builds; it runs with 6 as well. Hence no
# dependency resolution, but this list.
COMPOSE_1_29 = (
    "attrs==26.1.0",
    "certifi==2026.10.18",
    "charset-normalizer==3.5.2",
    "distro==1.9.0",
    "docker==5.0.3",
    "docker-compose==1.29.2",
    "dockerpty==0.4.1",
    "docopt==0.6.2",
    "idna==3.20",
    "jsonschema==3.2.0",
    "pyrsistent==0.20.0",
    "python-dotenv==0.21.1",
    "PyYAML==6.0.3",
    "requests==2.31.0",
    "setuptools==79.0.1",
    "six==1.17.0",
    "texttable==1.7.2",
    "urllib3==2.8.0",
    "websocket-client==0.59.0",
)

Compose = Callable[..., subprocess.CompletedProcess[str]]
"""Runs compose on the project: its arguments, and the variables that the project sees."""


def compose_1_29() -> list[str]:
    """The command line of docker-compose 1.29.2, installed once in `.local`."""
    folder = REPOSITORY / ".local/docker-compose-1.29.2"
    if not folder.exists():
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        installed = subprocess.run(
            [*pip, str(temporary), *COMPOSE_1_29], check=False, capture_output=True, text=True
        )
        if installed.returncode:
            shutil.rmtree(temporary, ignore_errors=True)
            pytest.skip(f"docker-compose 1.29.2 cannot be installed: {installed.stderr[-500:]}")
        temporary.rename(folder)
    start = "from compose.cli.main import main; main()"
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {start}"]


def compose_2() -> list[str]:
    """The command line of the compose plugin of docker."""
    command = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*command, "version"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this machine has no docker with the compose plugin")
    return command


def runner(command: list[str], tmp_path: Path) -> Compose:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env_file = tmp_path / "env"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        return subprocess.run(
            [*command, "--file", str(COMPOSE_FILE), "--env-file", str(env_file), *arguments],
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture(params=[compose_1_29, compose_2])
def compose(request: pytest.FixtureRequest, tmp_path: Path) -> Compose:
    """Compose, the oldest version that we support and the current one."""
    return runner(request.param(), tmp_path)


@pytest.fixture
def services(tmp_path: Path) -> dict[str, Any]:
    """The services as docker-compose 1.29.2 understands them."""
    result = runner(compose_1_29(), tmp_path)("config", **dict.fromkeys(SECRETS, "secret"))
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)["services"]


def test_both_generations_of_compose_accept_the_file(compose: Compose) -> None:
    result = compose("--profile", "cpu", "config", "--services", **dict.fromkeys(SECRETS, "secret"))
    assert result.returncode == 0, result.stderr
    assert {"redis", "s3", "worker-cpu", "flower"} <= set(result.stdout.split())


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_named_and_stops_everything(compose: Compose, missing: str) -> None:
    secrets = {name: "secret" for name in SECRETS if name != missing}
    refused = compose("config", **secrets)
    assert refused.returncode != 0
    assert f"set {missing} in .env" in refused.stderr


def test_the_example_names_every_variable_and_gives_no_secret() -> None:
    example = (REPOSITORY / ".env.example").read_text()
    named = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", example, re.MULTILINE))
    text = COMPOSE_FILE.read_text()
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", text)) | set(
        re.findall(r"^\s+(IMAGEFLEET_[A-Z_]+):$", text, re.MULTILINE)
    )
    assert used | {"COMPOSE_PROFILES"} == set(named)
    assert not any(named[secret] for secret in SECRETS)


def test_no_secret_has_a_default() -> None:
    uses = re.findall(r"\$\{([A-Z0-9_]+)([^}]*)\}", COMPOSE_FILE.read_text())
    assert {name for name, _ in uses} >= set(SECRETS)
    for name, operator in uses:
        assert name not in SECRETS or operator.startswith(":?"), name


def test_redis_is_published_nowhere_and_the_others_on_loopback(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"s3": ["127.0.0.1:8333:8333/tcp"], "flower": ["127.0.0.1:5555:5555/tcp"]}


def test_redis_persists_and_evicts_nothing(services: dict[str, Any]) -> None:
    redis = services["redis"]
    command = " ".join(redis["command"])
    assert "--requirepass secret" in command
    assert "--appendonly yes --appendfsync everysec --maxmemory-policy noeviction" in command
    assert redis["volumes"] == ["redis-data:/data:rw"]


def test_every_service_restarts_after_a_crash(services: dict[str, Any]) -> None:
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}


def test_every_service_has_a_health_check(services: dict[str, Any]) -> None:
    for service in services.values():
        ours = "build" in service and "HEALTHCHECK" in stages()[service["build"]["target"]]
        assert ours or "healthcheck" in service


def test_only_the_gpu_worker_reserves_gpus(services: dict[str, Any]) -> None:
    [device] = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "deploy" not in services["worker-cpu"]


def test_each_worker_starts_only_with_its_profile(services: dict[str, Any]) -> None:
    """A profile on one of them only would start the GPU worker on a machine without a GPU."""
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert profiles.pop("worker") == ["gpu"]
    assert profiles.pop("worker-cpu") == ["cpu"]
    assert set(profiles.values()) == {None}


def test_workers_can_be_scaled(services: dict[str, Any]) -> None:
    """A fixed container name or a published port would allow one worker only."""
    for name in ("worker", "worker-cpu"):
        assert not {"container_name", "ports"} & set(services[name])


def test_our_own_services_have_no_privileges(services: dict[str, Any]) -> None:
    for name in ("worker", "worker-cpu", "flower"):
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def stages() -> dict[str, str]:
    """The instructions of each stage of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", "", DOCKERFILE.read_text())
    parts = re.split(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_file_that_the_image_copies_exists_and_reaches_the_engine() -> None:
    allowed = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = {
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert sources == allowed
    assert all((REPOSITORY / source).exists() for source in sources)


def test_every_stage_that_runs_is_pinned_and_has_no_root() -> None:
    for name in ("flower", "worker"):
        instructions = stages()[name]
        assert "USER imagefleet" in instructions
        for install in re.findall(r"pip install ([^\n]+)", instructions):
            assert "--constraint constraints.txt" in install or "--no-deps" in install


def test_the_image_installs_what_the_worker_and_the_contract_depend_on(tmp_path: Path) -> None:
    """The step that lists the dependencies, as the engine's shell would run it."""
    [step] = re.findall(
        r"^RUN (python -c .+?) > requirements\.txt", stages()["worker"], re.M | re.S
    )
    listed = subprocess.run(
        ["sh", "-c", step.replace("python", sys.executable, 1)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    names = {re.split(r"[^A-Za-z0-9-]", line)[0] for line in listed}
    assert {"torch", "diffusers", "boto3", "celery"} <= names
    assert not any(name.startswith("imagefleet") for name in names)
