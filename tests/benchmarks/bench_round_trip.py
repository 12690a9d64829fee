"""Overhead of queue, ledger and store: the round trip of a job whose engine does nothing.

    python -m tests.benchmarks.bench_round_trip [--quick]

One job at a time, with a local directory as the store, so that queue, ledger and encoding remain.
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from imagefleet_producer import GenerateRequest
from tests.benchmarks.report import report
from tests.benchmarks.services import servers
from tests.fleet import TestFleet
from tools.make_demo_checkpoint import write_demo_checkpoint

Row = dict[str, str | float]


def round_trips(fleet: TestFleet, jobs: int) -> list[Row]:
    """One row for each part of the round trip."""
    worker = fleet.start_sleeper()
    empty = GenerateRequest(prompt="nothing 0", checkpoint="demo", width=64, height=64)
    fleet.client.generate(empty).result(timeout=30)
    whole, store = [], []
    for _ in range(jobs):
        started = time.perf_counter()
        result = fleet.client.generate(empty).result(timeout=30)
        whole.append((time.perf_counter() - started) * 1000)
        store.append(result.timings.store_s * 1000)
    worker.stop()
    queue = [total - stored for total, stored in zip(whole, store, strict=True)]
    return [
        {
            "part": part,
            "median ms": sorted(times)[len(times) // 2],
            "p95 ms": sorted(times)[len(times) * 95 // 100],
        }
        for part, times in (
            ("submit to result, all of it", whole),
            ("encode and store", store),
            ("queue and ledger", queue),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the round trip of a job.")
    parser.add_argument("--quick", action="store_true", help="few jobs, no file")
    quick = parser.parse_args().quick
    with TemporaryDirectory(prefix="imagefleet-bench-") as name:
        folder = Path(name)
        (folder / "models/checkpoints").mkdir(parents=True)
        write_demo_checkpoint(folder / "models/checkpoints/demo.safetensors", "sd1", seed=0)
        with servers(folder, folder / "models") as environment:
            os.environ["IMAGEFLEET_STORAGE_URL"] = (folder / "store").as_uri()
            local = {"IMAGEFLEET_STORAGE_URL": os.environ["IMAGEFLEET_STORAGE_URL"]}
            fleet = TestFleet(environment | local, folder)
            try:
                rows = round_trips(fleet, 5 if quick else 200)
            finally:
                fleet.close()
    if quick:
        for row in rows:
            print(", ".join(f"{name} {value}" for name, value in row.items()))
    else:
        report("round_trip", rows)


if __name__ == "__main__":
    main()
