"""`python -m localfleet`: started processes are recorded, found again, and stopped."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfleet.record import ProcessRecord

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120

STUB_WORKER = """
    import os, time
    from imagefleet_shared.broker import connect
    from imagefleet_shared.presence import WorkerInfo, announce
    from imagefleet_shared.settings import BrokerSettings

    if os.environ.get("STUB_FAILS"):
        raise SystemExit("no GPU, no luck")
    info = WorkerInfo(
        name="stub", host="here", device="cpu", slots=1, kinds=("generate",),
        default_checkpoint=None, models=(),
    )
    announce(connect(BrokerSettings(), retries=0), info)
    time.sleep(600)
"""
STUB_CLIENT = """
    import os, sys, time
    from imagefleet_shared.broker import connect
    from imagefleet_shared.presence import live_workers
    from imagefleet_shared.settings import BrokerSettings

    def main():
        workers = live_workers(connect(BrokerSettings(), retries=0))
        print("demo found", [worker.name for worker in workers], sys.argv[1:], flush=True)
        time.sleep(float(os.environ.get("STUB_SLEEPS", 0)))
        return 7
"""


class CommandLine:
    """`python -m localfleet` in its own folder, with a stub worker and a stub client."""

    def __init__(self, tmp_path: Path) -> None:
        self.home = tmp_path / "home"
        self.stubs = tmp_path / "stubs"
        for package, module, script in (
            ("imagefleet_worker", "__main__.py", STUB_WORKER),
            ("imagefleet_producer", "cli.py", STUB_CLIENT),
        ):
            folder = self.stubs / package
            folder.mkdir(parents=True)
            (folder / "__init__.py").touch()
            (folder / module).write_text(textwrap.dedent(script))

    def begin(self, command: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "localfleet", command, "--home", str(self.home)],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(self.stubs)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.begin(command, **environment) as child:
            out, err = child.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)

    def processes(self) -> dict[str, ProcessRecord]:
        recorded = json.loads((self.home / "fleet.json").read_text())["processes"]
        return {record["name"]: ProcessRecord.model_validate(record) for record in recorded}


@pytest.fixture
def localfleet(tmp_path: Path) -> Iterator[CommandLine]:
    command = CommandLine(tmp_path)
    # A shell's background jobs ignore SIGINT, and so would the processes that they start.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield command
    command("down")
    signal.signal(signal.SIGINT, inherited)


class TestCommandLine:
    def test_up_starts_everything_once_and_down_stops_it(self, localfleet: CommandLine) -> None:
        first = localfleet("up")
        assert first.returncode == 0, first.stderr
        assert "generate" in first.stdout
        processes = localfleet.processes()
        assert list(processes) == ["redis", "s3", "flower", "worker"]
        assert all(process.alive for process in processes.values())
        assert localfleet("status").returncode == 0

        assert "up already" in localfleet("up").stdout
        assert localfleet.processes() == processes

        assert localfleet("down").returncode == 0
        assert not any(process.alive for process in processes.values())
        assert "No fleet" in localfleet("down").stdout
        assert localfleet("status").returncode == 1

    def test_the_environment_can_be_sourced_and_is_for_the_owner_only(
        self, localfleet: CommandLine
    ) -> None:
        localfleet("up")
        environment = localfleet.home / "env"
        assert stat.S_IMODE(environment.stat().st_mode) == 0o600
        assert stat.S_IMODE(localfleet.home.stat().st_mode) == 0o700
        script = f". {environment} && env"
        sourced = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
        for name in ("IMAGEFLEET_REDIS_URL", "IMAGEFLEET_STORAGE_URL", "AWS_SECRET_ACCESS_KEY"):
            assert f"{name}=" in sourced.stdout

    def test_a_fleet_that_lost_a_process_is_restarted(self, localfleet: CommandLine) -> None:
        localfleet("up")
        before = localfleet.processes()
        before["worker"].stop(TIMEOUT_S)
        assert localfleet("status").returncode == 1
        again = localfleet("up")
        assert "The fleet is up." in again.stdout, again.stderr
        assert not before["redis"].alive
        assert all(process.alive for process in localfleet.processes().values())

    def test_a_worker_that_fails_to_start_stops_the_fleet_with_its_reason(
        self, localfleet: CommandLine
    ) -> None:
        failed = localfleet("up", STUB_FAILS="1")
        assert failed.returncode == 1
        assert "worker ended before it was ready" in failed.stderr
        assert "no GPU, no luck" in failed.stderr
        assert "No fleet" in localfleet("down").stdout

    def test_demo_starts_its_own_fleet_and_stops_it(self, localfleet: CommandLine) -> None:
        ended = localfleet("demo")
        assert ended.returncode == 7, ended.stderr
        assert "demo found ['stub'] ['demo', '--out', 'out']" in ended.stdout
        assert "No fleet" in localfleet("down").stdout

    def test_demo_leaves_a_running_fleet_running(self, localfleet: CommandLine) -> None:
        localfleet("up")
        assert localfleet("demo").returncode == 7
        assert localfleet("status").returncode == 0

    @pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
    def test_demo_stops_its_fleet_when_it_is_interrupted(
        self, localfleet: CommandLine, sig: signal.Signals
    ) -> None:
        with localfleet.begin("demo", STUB_SLEEPS="600") as child:
            assert child.stdout is not None
            assert "Flower shows the fleet at" in child.stdout.readline()
            assert "demo found" in child.stdout.readline()
            processes = localfleet.processes()
            if sig is signal.SIGINT:
                os.killpg(child.pid, sig)  # as a terminal does
            else:
                child.send_signal(sig)
            child.communicate(timeout=TIMEOUT_S)
        assert child.returncode == 128 + sig
        assert not any(process.alive for process in processes.values())
