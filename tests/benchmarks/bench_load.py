"""Time and memory of loading full-size single-file checkpoints with random fp16 weights.

    python -m tests.benchmarks.bench_load [sd1] [sdxl]

Writes 2 GB (sd1) or 7 GB (sdxl) into a temporary folder. Each load runs in its own process, so that
peak memory is that of this load. It compares mapping the file (as the worker does) with reading it
whole, each with a cold page cache, with the hash computed concurrently, and after the job's thread
has read and hashed the file while it waited (`ReadAhead`).
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Self, get_args
from unittest.mock import patch

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from imagefleet_worker.catalog.read_ahead import sha256_of
from imagefleet_worker.checkpoints import single_file
from imagefleet_worker.checkpoints.single_file import load_single_file
from imagefleet_worker.weights.families import Family
from tests.benchmarks.report import report
from tests.full_size import write_full_size

PAGES = ("cold", "cold, hashed beside", "read ahead")
ACCESS = ("mapped", "read whole")
REPEATS = 2
"""The fastest counts, as other programs may share the machine."""
_CHILD = "--child"


class ReadWhole:
    """Replaces `safe_open` and reads the file in one go."""

    def __init__(self, path: Path, framework: str) -> None:
        assert framework == "pt"
        self._tensors = safetensors.torch.load(path.read_bytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.clear()

    def get_tensor(self, key: str) -> Tensor:
        """As `safe_open`."""
        return self._tensors[key]


def drop_pages(path: Path) -> None:
    """Evict a file from the page cache, as far as the system honours the advice."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(path: Path, pages: str, access: str) -> None:
    """Load one file and print seconds and memory; runs in the child."""
    drop_pages(path)
    ahead_s = 0.0
    if pages == "read ahead":
        ahead_s = _seconds(lambda: sha256_of(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hasher = Thread(target=sha256_of, args=(path,))
    if pages == "cold, hashed beside":
        hasher.start()
    opener = ReadWhole if access == "read whole" else safe_open
    with patch.object(single_file, "safe_open", opener):
        started = time.perf_counter()
        loaded = load_single_file(path, torch.device("cpu"), torch.float16)
        if hasher.ident is not None:
            hasher.join()
        seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del loaded  # Kept until its memory was measured.
    print(ahead_s, seconds, before, anonymous, peak)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _in_child(path: Path, pages: str, access: str) -> list[float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_load", _CHILD]
    printed = subprocess.run(
        [*command, str(path), pages, access], check=True, capture_output=True, text=True
    ).stdout
    return [float(figure) for figure in printed.split()]


def measure(path: Path, family: Family) -> list[dict[str, str | float]]:
    """One row for each way to load the file."""
    rows: list[dict[str, str | float]] = []
    for pages in PAGES:
        for access in ACCESS:
            runs = [_in_child(path, pages, access) for _ in range(REPEATS)]
            ahead_s, seconds, before, anonymous, peak = min(runs, key=lambda run: run[1])
            rows.append(
                {
                    "checkpoint": family,
                    "file GB": path.stat().st_size / 1e9,
                    "page cache": pages,
                    "file": access,
                    "read ahead s": ahead_s,
                    "load s": seconds,
                    "GiB before": before / 2**20,
                    "GiB own after": anonymous / 2**20,
                    "GiB peak, mapped file included": peak / 2**20,
                }
            )
    return rows


def main() -> None:
    if sys.argv[1:2] == [_CHILD]:
        load(Path(sys.argv[2]), *sys.argv[3:])
        return
    families = [family for family in get_args(Family) if family in (sys.argv[1:] or ["sd1"])]
    rows: list[dict[str, str | float]] = []
    with TemporaryDirectory(prefix="imagefleet-bench-") as folder:
        for family in families:
            path = Path(folder) / f"{family}.safetensors"
            write_full_size(path, family, seed=0)
            rows += measure(path, family)
            path.unlink()
    report("load", rows)


if __name__ == "__main__":
    main()
