"""Share of time that the GPU is idle while jobs wait, with large pictures and a slow store.

    python -m tests.benchmarks.bench_idle [--quick]

One real worker process with its default settings, on real Redis and S3. Its renderer sleeps instead
of using a GPU and returns 8-megapixel pictures, which are encoded as PNG. The store takes 200 ms
longer for each object, and a job has two, its picture and its manifest. A batch takes 1.5 s, half
of the target for four pictures of SDXL at 1024 x 1024 on one H200 (1.2 images/s): shorter batches
are harder. All jobs are sent at once; idle time is the time between batches, from the start of the
first to the end of the last.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from imagefleet_producer import GenerateRequest, JobResult
from tests.benchmarks.report import report
from tests.benchmarks.services import servers
from tests.fleet import TestFleet
from tools.make_demo_checkpoint import write_demo_checkpoint

_STORE_DELAY_S = 0.2

Row = dict[str, str | float]


def measure(folder: Path, jobs: int, batch_s: float, side: int) -> Row:
    models = folder / "models"
    (models / "checkpoints").mkdir(parents=True)
    write_demo_checkpoint(models / "checkpoints/demo.safetensors", "sd1", seed=0)
    batch_log = folder / "batches"
    with servers(folder, models) as environment:
        fleet = TestFleet(environment, folder)
        try:
            command = ["tests.benchmarks.idle_worker", str(batch_log), str(batch_s), str(side)]
            fleet.start_worker(["-m", *command, str(_STORE_DELAY_S)])
            request = GenerateRequest(prompt="a fox", checkpoint="demo", width=1024, height=1024)
            pending = [fleet.client.generate(request) for _ in range(jobs)]
            results = [job.result(timeout=600) for job in pending]
        finally:
            fleet.close()
    return _row(batch_log.read_text().splitlines(), results, batch_s)


def _row(lines: Sequence[str], results: Sequence[JobResult], batch_s: float) -> Row:
    batches = [tuple(map(float, line.split())) for line in lines]
    busy_s = sum(end - start for start, end, _ in batches)
    elapsed_s = batches[-1][1] - batches[0][0]
    gaps_s = [later[0] - end for (_, end, _), later in pairwise(batches)]
    return {
        "jobs": len(results),
        "batches": len(batches),
        "jobs a batch": mean(count for *_, count in batches),
        "batch s": batch_s,
        "picture MB": median(result.images[0].size_bytes for result in results) / 1e6,
        "encode and store s": median(result.timings.store_s for result in results),
        "longest idle ms": 1000 * max(gaps_s),
        "idle %": 100 * (1 - busy_s / elapsed_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long the GPU is idle.")
    parser.add_argument("--quick", action="store_true", help="few small pictures, no file")
    quick = parser.parse_args().quick
    with TemporaryDirectory(prefix="imagefleet-bench-") as name:
        row = measure(Path(name), *((12, 0.2, 256) if quick else (64, 1.5, 2896)))
    if quick:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    else:
        report("idle", [row])


if __name__ == "__main__":
    main()
