"""The parent process: runs one worker process per GPU, restarts those that die or stall.

It never touches CUDA, so that a hung driver cannot take it down.
"""

import fcntl
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from time import monotonic

from imagefleet_worker.heartbeat import IDLE

logger = logging.getLogger(__name__)

TICK_S = 0.5
RESTART_PAUSE_S = (1, 30)
"""Backoff before a process is restarted: doubled each time, from the first to the last."""
HEALTHY_S = 60
"""A process that lived this long resets the backoff."""
KILL_AFTER_S = 15
"""Time after the drain timeout that a process has to exit before it is killed."""
_GPU = re.compile(r"\d+|(GPU|MIG)-.+")
"""A GPU in CUDA_VISIBLE_DEVICES. The driver ends the list at anything else: `-1` hides all GPUs,
`0,-1,1` all but the first (CUDA C++ Programming Guide, environment variables)."""


@dataclass(frozen=True)
class WorkerSlot:
    """Where one worker process runs: its name, device and environment."""

    name: str
    device: str
    """As torch names it inside the process: `cpu` or `cuda`."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class WorkerProcess:
    """The worker process of a slot, over its restarts."""

    def __init__(self, slot: WorkerSlot, command: Sequence[str], stall_timeout_s: float) -> None:
        self._slot = slot
        self._command = command
        self._stall_timeout_s = stall_timeout_s
        self._pause_s = RESTART_PAUSE_S[0]
        self._start_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._heartbeats = -1
        self._started = self._last_heartbeat = 0.0
        self._busy = False

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def poll(self) -> None:
        """Start, reap or kill the process as needed; called every tick."""
        if self._process is None:
            if monotonic() >= self._start_at:
                self._start()
            return
        self._read_heartbeats()
        if self._process.poll() is not None:
            self._reap(self._process.returncode)
        elif self._busy and monotonic() > self._last_heartbeat + self._stall_timeout_s:
            logger.error(
                "worker %s has taken no step for %g s: killed",
                self._slot.name,
                self._stall_timeout_s,
            )
            self._process.kill()

    def send(self, sig: signal.Signals) -> None:
        """Send a signal to the process if it is alive."""
        if self._process is not None and self.running:
            self._process.send_signal(sig)

    def _start(self) -> None:
        self._heartbeats, child_end = os.pipe()
        os.set_blocking(self._heartbeats, False)
        self._process = subprocess.Popen(
            [
                *self._command,
                *("--name", self._slot.name),
                *("--device", self._slot.device),
                *("--beat-fd", str(child_end)),
            ],
            env={**os.environ, **self._slot.environment},
            pass_fds=[child_end],
        )
        os.close(child_end)
        self._started = self._last_heartbeat = monotonic()
        self._busy = False
        logger.info("worker %s started, pid %d", self._slot.name, self._process.pid)

    def _read_heartbeats(self) -> None:
        ready, _, _ = select.select([self._heartbeats], [], [], 0)
        if ready and (heartbeats := os.read(self._heartbeats, 65536)):
            self._last_heartbeat = monotonic()
            self._busy = not heartbeats.endswith(IDLE)

    def _reap(self, code: int) -> None:
        os.close(self._heartbeats)
        self._process = None
        if monotonic() - self._started > HEALTHY_S:
            self._pause_s = RESTART_PAUSE_S[0]
        logger.error("worker %s ended with %d; again in %g s", self._slot.name, code, self._pause_s)
        self._start_at = monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 2, RESTART_PAUSE_S[1])


def worker_slots(device: str, max_gpus: int | None, lock_dir: Path) -> list[WorkerSlot]:
    """A slot for every free GPU that this process may use, or one on the CPU.

    A GPU is claimed by a file lock, which the kernel releases when this process ends, so that
    several supervisors can share a host.

    Args:
        device: `auto`, `cuda` or `cpu`.
        max_gpus: how many to claim; None: all that are free.
        lock_dir: for the lock files; the same for all supervisors of a host.

    Raises:
        RuntimeError: `cuda` was requested and there is no GPU, or others use them all.
    """
    host = socket.gethostname()
    gpus = [] if device == "cpu" else _gpus()
    if device == "cuda" and not gpus:
        raise RuntimeError("IMAGEFLEET_DEVICE=cuda, and no NVIDIA GPU is visible")
    if not gpus:
        return [WorkerSlot(f"{host}-cpu-{os.getpid()}", "cpu")]
    locked = list(islice((gpu for gpu in gpus if _lock_gpu(gpu, lock_dir)), max_gpus))
    if not locked:
        raise RuntimeError(f"other workers of this host have all its GPUs ({', '.join(gpus)})")
    return [
        WorkerSlot(
            f"{host}-cuda{gpu}-{os.getpid()}",
            "cuda",
            {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
        for gpu in locked
    ]


def with_metrics_ports(slots: Sequence[WorkerSlot], first: int | None) -> list[WorkerSlot]:
    """Slots whose processes serve metrics, each on its own port from `first`; None: no metrics."""
    if first is None:
        return list(slots)
    return [
        replace(
            slot, environment={**slot.environment, "IMAGEFLEET_METRICS_PORT": str(first + index)}
        )
        for index, slot in enumerate(slots)
    ]


def _lock_gpu(gpu: str, lock_dir: Path) -> bool:
    lock_dir.mkdir(parents=True, exist_ok=True)
    # Never closed: the lock lasts as long as this process.
    lock = os.open(lock_dir / f"gpu-{gpu}", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return list(takewhile(_GPU.fullmatch, map(str.strip, visible.split(","))))
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


class Supervisor:
    """Keeps the worker processes running until SIGTERM or SIGINT.

    Args:
        slots: one process each.
        stall_timeout_s: how long a busy engine may take no step.
        drain_timeout_s: how long a process may take to stop after SIGTERM.
        command: what to run in a slot; name, device and pipe are appended.
    """

    def __init__(
        self,
        slots: Sequence[WorkerSlot],
        stall_timeout_s: float,
        drain_timeout_s: float,
        command: Sequence[str] = (sys.executable, "-m", "imagefleet_worker.app"),
    ) -> None:
        self._processes = [WorkerProcess(slot, command, stall_timeout_s) for slot in slots]
        self._drain_timeout_s = drain_timeout_s
        self._wake, self._waker = os.pipe()
        self._stopping = False

    def run(self) -> None:
        """Poll the processes until a signal to stop, then stop them."""
        os.set_blocking(self._waker, False)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._stop)
        while not self._stopping:
            for process in self._processes:
                process.poll()
            select.select([self._wake], [], [], TICK_S)
        self._drain()

    def _stop(self, signum: int, frame: object) -> None:
        self._stopping = True
        os.write(self._waker, b"x")

    def _drain(self) -> None:
        deadline = monotonic() + self._drain_timeout_s + KILL_AFTER_S
        for process in self._processes:
            process.send(signal.SIGTERM)
        while any(process.running for process in self._processes) and monotonic() < deadline:
            select.select([], [], [], 0.1)
        for process in self._processes:
            process.send(signal.SIGKILL)
