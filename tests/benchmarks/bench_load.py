"""Time and memory of loading full-size single-file checkpoints (random fp16 weights), offline.

    python -m tests.benchmarks.bench_load

Writes 9 GB into a temporary folder. Each load runs in a process of its own, so that peak memory is
that of this load; the file is in the page cache, as it is when a worker loads it again.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from imagefleet_worker.models.families import Family
from imagefleet_worker.models.single_file import load_single_file
from tests.benchmarks.report import report
from tests.full_size import write_full_size

FAMILIES: tuple[Family, ...] = ("sd1", "sdxl")


def load(path: Path) -> None:
    """Load one file and print seconds and memory; runs in the child."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loaded = load_single_file(path, torch.device("cpu"), torch.float16)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del loaded  # Held until its memory was read.
    print(seconds, before, anonymous, peak)


def main() -> None:
    if len(sys.argv) == 2:
        load(Path(sys.argv[1]))
        return
    rows: list[dict[str, str | float]] = []
    with TemporaryDirectory(prefix="imagefleet-bench-") as folder:
        for family in FAMILIES:
            path = Path(folder) / f"{family}.safetensors"
            write_full_size(path, family, seed=0)
            command = [sys.executable, "-m", "tests.benchmarks.bench_load", str(path)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, before, anonymous, peak = map(float, printed.split())
            rows.append(
                {
                    "checkpoint": family,
                    "file GB": path.stat().st_size / 1e9,
                    "load s": seconds,
                    "GiB before": before / 2**20,
                    "GiB own after": anonymous / 2**20,
                    "GiB peak, mapped file included": peak / 2**20,
                }
            )
            path.unlink()
    report("load", rows)


if __name__ == "__main__":
    main()
