"""The supervisor, with tiny scripts as workers."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from imagefleet_worker.supervisor import WorkerSlot, worker_slots
from localfleet.environment import child_environment
from localfleet.process import Process
from tests.fleet import REPOSITORY, wait_for

PARENT = """
import logging, sys
from imagefleet_worker.supervisor import Supervisor, WorkerSlot
logging.basicConfig(level=logging.INFO)
slots = [WorkerSlot(name, "cpu", {"SLOT": name}) for name in sys.argv[2].split(",")]
Supervisor(slots, float(sys.argv[3]), float(sys.argv[4]), (sys.executable, sys.argv[1])).run()
"""
CHILD = """
import argparse, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--name", "--device"):
    parser.add_argument(name)
parser.add_argument("--beat-fd", type=int)
arguments = parser.parse_args()
folder = Path(__file__).parent
def log(event):
    with (folder / "events").open("a") as events:
        events.write(f"{arguments.name} {event}\\n")
def heartbeat(byte):
    os.write(arguments.beat_fd, byte)
log(f"start {os.getpid()}")
"""
STOPS_GRACEFULLY = """
def stop(*_):
    log("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
"""


class Supervise(Protocol):
    def __call__(
        self, script: str, *, slots: str = "a", stall_s: float = 60, drain_s: float = 5
    ) -> Process: ...


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start a supervisor over workers that run the script."""
    started: list[Process] = []

    def start(script: str, *, slots: str = "a", stall_s: float = 60, drain_s: float = 5) -> Process:
        child = tmp_path / "child.py"
        child.write_text(CHILD + script)
        arguments = [sys.executable, "-c", PARENT, str(child), slots, str(stall_s), str(drain_s)]
        process = Process(
            name="supervisor",
            arguments=arguments,
            url="",
            directory=REPOSITORY,
            log=tmp_path / "supervisor.log",
            environment=child_environment({"PYTHONPATH": "worker:shared"}),
            ready=lambda _: (tmp_path / "events").exists(),
        )
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def events(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """What the workers logged so far, each line as words."""
    return lambda: [line.split() for line in (tmp_path / "events").read_text().splitlines()]


Events = Callable[[], list[list[str]]]


def starts(events: Events) -> list[list[str]]:
    return [words for words in events() if words[1] == "start"]


def test_every_slot_gets_a_process_with_its_environment(
    supervise: Supervise, events: Events
) -> None:
    supervise('log("env " + os.environ["SLOT"]); time.sleep(60)', slots="a,b")
    wait_for(lambda: len(events()) == 4, 10, "both have started")
    assert sorted(words[1:] for words in events() if words[1] == "env") == [
        ["env", "a"],
        ["env", "b"],
    ]
    assert {words[0] for words in events()} == {"a", "b"}


def test_a_worker_that_dies_is_restarted_with_growing_pauses(
    supervise: Supervise, events: Events, tmp_path: Path
) -> None:
    supervise("sys.exit(3)")
    took_s = wait_for(lambda: len(starts(events)) == 3, 15, "it is started three times")
    assert took_s > 2.5
    log = (tmp_path / "supervisor.log").read_text()
    assert "worker a ended with 3; again in 1 s" in log
    assert "worker a ended with 3; again in 2 s" in log


def test_a_busy_worker_that_takes_no_step_is_killed(supervise: Supervise, events: Events) -> None:
    supervise('heartbeat(b"b"); time.sleep(60)', stall_s=1)
    wait_for(lambda: len(starts(events)) == 2, 10, "it is started again")
    first, second = (int(words[2]) for words in starts(events))
    assert first != second
    assert not Path(f"/proc/{first}").exists()


def test_a_worker_that_takes_steps_is_not_killed(supervise: Supervise, events: Events) -> None:
    supervise(
        'for _ in range(15):\n    heartbeat(b"b"); time.sleep(0.2)\nlog("done"); heartbeat(b"i")\n'
        "time.sleep(60)",
        stall_s=1,
    )
    wait_for(lambda: events()[-1][1] == "done", 10, "it works three seconds")
    assert len(starts(events)) == 1


def test_an_idle_worker_needs_no_heartbeat(supervise: Supervise, events: Events) -> None:
    supervise(
        'heartbeat(b"b"); heartbeat(b"i"); time.sleep(3); log("done"); time.sleep(60)', stall_s=1
    )
    wait_for(lambda: events()[-1][1] == "done", 10, "it is idle three seconds")
    assert len(starts(events)) == 1


def test_a_workers_death_does_not_affect_its_neighbour(
    supervise: Supervise, events: Events
) -> None:
    supervise('time.sleep(60 if arguments.name == "a" else 0)', slots="a,b")
    wait_for(lambda: len(starts(events)) == 3, 15, "b is started twice")
    assert [words[0] for words in starts(events)].count("a") == 1


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_is_forwarded_and_workers_are_waited_for(
    supervise: Supervise, events: Events, sig: signal.Signals
) -> None:
    parent = supervise(STOPS_GRACEFULLY + 'log("ready"); time.sleep(60)', slots="a,b")
    wait_for(lambda: [words[1] for words in events()].count("ready") == 2, 10, "both are ready")
    os.kill(parent.pid, sig)
    wait_for(lambda: not parent.alive, 15, "the parent ends")
    assert sorted(words for words in events() if words[1] == "stopped") == [
        ["a", "stopped"],
        ["b", "stopped"],
    ]
    assert len(starts(events)) == 2


def test_the_cpu_has_one_slot(tmp_path: Path) -> None:
    [slot] = worker_slots("cpu", None, tmp_path)
    assert slot.device == "cpu"
    assert str(os.getpid()) in slot.name


def test_every_visible_gpu_has_a_slot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = worker_slots("auto", None, tmp_path)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == ["2", "5"]
    assert {slot.device for slot in found} == {"cuda"}
    assert len({slot.name for slot in found}) == 2


def test_gpus_locked_by_other_workers_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    first, second = worker_slots("cuda", 1, tmp_path), worker_slots("cuda", None, tmp_path)
    assert [visible(slot) for slot in first] == ["2"]
    assert [visible(slot) for slot in second] == ["5", "7"]
    with pytest.raises(RuntimeError, match=r"other workers .* \(2, 5, 7\)"):
        worker_slots("cuda", None, tmp_path)


def visible(slot: WorkerSlot) -> str:
    return slot.environment["CUDA_VISIBLE_DEVICES"]


def test_a_requested_gpu_that_does_not_exist_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [slot.device for slot in worker_slots("auto", None, tmp_path)] == ["cpu"]
    with pytest.raises(RuntimeError, match="no NVIDIA GPU is visible"):
        worker_slots("cuda", None, tmp_path)


@pytest.mark.parametrize("hidden", ["-1", "-1,0", ",2", " -1 ,3", "NoDevFiles"])
def test_a_list_of_gpus_ends_where_cuda_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: str
) -> None:
    """The usual way to hide all GPUs, -1, gave a worker on the GPU of that name."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert [slot.device for slot in worker_slots("auto", None, tmp_path)] == ["cpu"]
    with pytest.raises(RuntimeError, match="no NVIDIA GPU is visible"):
        worker_slots("cuda", None, tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"5, 7,{hidden}")
    assert [visible(slot) for slot in worker_slots("cuda", None, tmp_path)] == ["5", "7"]


@pytest.mark.parametrize("name", ["GPU-8932f937", "MIG-3eb87630-93d5-b2b6-b8ff-9b359caf4ee2"])
def test_gpus_are_recognized_by_their_ids_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    assert [visible(slot) for slot in worker_slots("auto", None, tmp_path)] == [name]
