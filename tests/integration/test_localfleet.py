"""The local fleet's servers: they answer, persist their data, and leave nothing running."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from mypy_boto3_s3 import S3Client
from redis import Redis

from localfleet.environment import child_environment
from localfleet.process import Process, StartFailed
from localfleet.record import ProcessRecord
from localfleet.servers import BUCKET, S3Keys, flower

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def sleeper(tmp_path: Path, script: str, *, start_timeout_s: float = 20) -> Process:
    """A Python process that is ready as soon as its log says so."""
    log = tmp_path / "sleeper.log"
    return Process(
        name="sleeper",
        arguments=[sys.executable, "-c", textwrap.dedent(script)],
        url="",
        directory=tmp_path,
        log=log,
        environment=child_environment({"PYTHONUNBUFFERED": "1"}),
        ready=lambda _pid: "ready" in log.read_text(),
        start_timeout_s=start_timeout_s,
        stop_timeout_s=0.5,
    )


def s3_client(url: str, access_key: str, secret_key: str) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )


class TestRedis:
    def test_a_killed_server_restarts_on_its_port_with_its_data(
        self, redis_server: Process, redis_url: str
    ) -> None:
        with Redis.from_url(redis_url) as client:
            client.set("key", "yes")
            # With `appendfsync everysec` an answer does not mean that the append-only file has the
            # write: while an fsync runs, writes to the file wait for up to two seconds.
            client.waitaof(1, 0, 5000)
            redis_server.kill()
            assert not redis_server.alive
            redis_server.start()
            assert client.get("key") == b"yes"

    def test_a_restarted_server_keeps_its_url(self, redis_server: Process, redis_url: str) -> None:
        before = redis_server.pid
        redis_server.restart()
        assert redis_server.pid != before
        with Redis.from_url(redis_url) as client:
            assert client.ping()

    def test_it_persists_and_refuses_to_evict(self, redis_url: str) -> None:
        with Redis.from_url(redis_url, decode_responses=True) as client:
            settings = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind")
        assert settings == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
        }

    def test_every_test_starts_with_an_empty_redis(self, redis_url: str) -> None:
        with Redis.from_url(redis_url) as client:
            assert client.dbsize() == 0


class TestS3:
    def test_objects_outlive_a_crash(
        self, s3_server: Process, s3_keys: S3Keys, unique_prefix: str
    ) -> None:
        client = s3_client(s3_server.url, s3_keys.access_key, s3_keys.secret_key)
        client.put_object(Bucket=BUCKET, Key=f"{unique_prefix}/a", Body=b"content")
        s3_server.kill()
        s3_server.start()
        response = client.get_object(Bucket=BUCKET, Key=f"{unique_prefix}/a")
        with response["Body"] as body:
            assert body.read() == b"content"

    def test_a_wrong_key_is_refused(self, s3_server: Process, s3_keys: S3Keys) -> None:
        client = s3_client(s3_server.url, s3_keys.access_key, "wrong-secret")
        with pytest.raises(ClientError, match=r"403|SignatureDoesNotMatch"):
            client.list_objects_v2(Bucket=BUCKET)

    def test_an_object_is_written_only_once_with_if_none_match(
        self, s3_server: Process, s3_keys: S3Keys, unique_prefix: str
    ) -> None:
        client = s3_client(s3_server.url, s3_keys.access_key, s3_keys.secret_key)
        key = f"{unique_prefix}/job.json"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"first", IfNoneMatch="*")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=BUCKET, Key=key, Body=b"second", IfNoneMatch="*")

    def test_all_its_ports_are_on_loopback(self, s3_server: Process) -> None:
        assert listening_addresses(s3_server.pid) == {"127.0.0.1"}

    def test_the_settings_for_tests_work(
        self, s3_settings_env: dict[str, str], unique_prefix: str
    ) -> None:
        assert s3_settings_env["IMAGEFLEET_STORAGE_URL"] == f"s3://{BUCKET}/{unique_prefix}"
        client = s3_client(
            s3_settings_env["IMAGEFLEET_S3_ENDPOINT_URL"],
            s3_settings_env["AWS_ACCESS_KEY_ID"],
            s3_settings_env["AWS_SECRET_ACCESS_KEY"],
        )
        assert client.list_objects_v2(Bucket=BUCKET, Prefix=unique_prefix)["KeyCount"] == 0


def listening_addresses(pid: int) -> set[str]:
    """IP addresses on which the process listens for TCP; IPv6 in raw hex."""
    links: list[str] = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        # A connection may be closed in between.
        with suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                raw = fields[1].split(":")[0]
                found.add(
                    ".".join(str(b) for b in reversed(bytes.fromhex(raw))) if len(raw) == 8 else raw
                )
    return found


def test_tests_see_no_settings_or_credentials_from_outside() -> None:
    assert not [name for name in os.environ if name.startswith("IMAGEFLEET_")]
    assert "AWS_ACCESS_KEY_ID" not in os.environ


class TestProcess:
    def test_an_early_end_is_reported_with_the_end_of_the_log(self, tmp_path: Path) -> None:
        process = sleeper(tmp_path, "raise SystemExit('no such flag')")
        with pytest.raises(StartFailed, match=r"ended before it was ready(.|\n)*no such flag"):
            process.start()
        assert not process.alive

    def test_a_process_that_never_answers_is_not_left_running(self, tmp_path: Path) -> None:
        process = sleeper(tmp_path, "import time; time.sleep(600)", start_timeout_s=0.2)
        with pytest.raises(StartFailed, match=r"did not answer within 0\.2 s"):
            process.start()
        assert not process.alive

    def test_a_process_that_ignores_sigterm_is_killed_after_the_timeout(
        self, tmp_path: Path
    ) -> None:
        script = """
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready")
            time.sleep(600)
        """
        with sleeper(tmp_path, script) as process:
            process.stop()
            assert not process.alive

    def test_stopping_twice_does_no_harm(self, tmp_path: Path) -> None:
        with sleeper(tmp_path, "import time; print('ready'); time.sleep(600)") as process:
            process.stop()
            process.stop()

    def test_a_recycled_pid_is_not_taken_for_the_process(self, tmp_path: Path) -> None:
        with sleeper(tmp_path, "import time; print('ready'); time.sleep(600)") as process:
            record = process.record()
            earlier = record.model_copy(update={"started": record.started - 1})
            assert record.alive
            assert not earlier.alive
            earlier.stop(1)
            assert process.alive

    def test_it_dies_with_its_parent(self, tmp_path: Path) -> None:
        """A test session that is killed leaves no server behind."""
        pid_file = tmp_path / "pid"
        parent = f"""
            import os, signal, sys
            from pathlib import Path
            from localfleet.servers import redis_server
            server = redis_server(Path({str(tmp_path / "redis")!r})).start()
            Path({str(pid_file)!r}).write_text(server.record().model_dump_json())
            os.kill(os.getpid(), signal.SIGKILL)
        """
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(parent)],
            cwd=REPOSITORY,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert ended.returncode == -signal.SIGKILL
        orphan = ProcessRecord.model_validate_json(pid_file.read_text())
        eventually(lambda: not orphan.alive)


def test_flower_shows_the_task_names_of_a_celery_worker(redis_url: str, tmp_path: Path) -> None:
    """The dashboard lists tasks by their events, and is read-only."""
    app = f"""
        from celery import Celery
        app = Celery("shown", broker={redis_url!r})
        app.conf.update(worker_send_task_events=True, task_ignore_result=True)

        @app.task(name="shown.task")
        def task():
            return None

        if __name__ == "__main__":
            import threading, time
            def send():
                while True:
                    task.delay()
                    time.sleep(0.5)
            threading.Thread(target=send, daemon=True).start()
            print("ready")
            app.worker_main(["worker", "--pool=solo", "--loglevel=warning"])
    """
    dashboard = flower(redis_url, tmp_path / "flower.log")
    with dashboard, sleeper(tmp_path, app):
        eventually(lambda: "shown.task" in fetch(f"{dashboard.url}/metrics"))


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()
