"""What queue, ledger and store cost: the fleet's rate against the same pipeline in a plain loop.

    python -m tests.benchmarks.bench_throughput [--jobs 8] [--rounds 3]

Three ways to draw the same pictures with the demo checkpoint (128x128, 25 steps, guided), turn
about in each round: the pipeline called in a loop in this process; through the fleet one job at a
time; through the fleet with eight at once. Then the round trip of a job whose engine does nothing,
with a directory as its store.
"""

import argparse
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from imagefleet_producer import Client, GenerateRequest
from imagefleet_worker.app import make_studio
from imagefleet_worker.models.store import ModelStore
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.stages import Stages
from localfleet.servers import BUCKET, S3Keys, redis_server, s3_server
from tests.benchmarks.report import report
from tests.fleet import TestFleet
from tests.jobs import resolved
from tools.make_demo_checkpoint import write_demo_checkpoint

EMPTY_JOBS = 200


def request(seed: int) -> GenerateRequest:
    return GenerateRequest(
        prompt="a red fox in the snow", checkpoint="demo", width=128, height=128, seed=seed
    )


def in_process(models_dir: Path) -> Callable[[int], None]:
    """The pipeline in a loop, pictures dropped."""
    models = ModelStore(models_dir)
    studio = make_studio(WorkerSettings(), models, torch.device("cpu"))

    def draw(count: int) -> None:
        for seed in range(count):
            job = resolved(models, **request(seed).model_dump(exclude_defaults=True))
            studio.render([job], Stages([lambda _stage, _step, _steps: None]))

    draw(1)
    return draw


def one_at_a_time(client: Client, count: int) -> None:
    for seed in range(count):
        client.generate(request(seed)).result(timeout=120)


def eight_at_once(client: Client, count: int) -> None:
    jobs = [client.generate(request(seed)) for seed in range(count)]
    for job in jobs:
        job.result(timeout=120)


@contextmanager
def servers(folder: Path) -> Generator[dict[str, str]]:
    """Redis and S3 of our own; yields the environment that reaches them."""
    keys = S3Keys.random()
    with redis_server(folder / "redis") as redis, s3_server(folder / "s3", keys) as s3:
        yield {
            "IMAGEFLEET_REDIS_URL": redis.url,
            "IMAGEFLEET_STORAGE_URL": f"s3://{BUCKET}/bench",
            "IMAGEFLEET_S3_ENDPOINT_URL": s3.url,
            "IMAGEFLEET_MODELS_DIR": str(folder / "models"),
            "IMAGEFLEET_SPOOL_DIR": str(folder / "spool"),
            **keys.environment(),
        }


def throughput(fleet: TestFleet, models_dir: Path, jobs: int, rounds: int) -> None:
    worker = fleet.start_worker()
    ways: dict[str, Callable[[int], None]] = {
        "in-process loop": in_process(models_dir),
        "fleet, one at a time": lambda count: one_at_a_time(fleet.client, count),
        "fleet, eight at once": lambda count: eight_at_once(fleet.client, count),
    }
    one_at_a_time(fleet.client, 2)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, draw in ways.items():
            started = time.perf_counter()
            draw(jobs)
            rates[way].append(jobs / (time.perf_counter() - started))
    worker.stop()
    base = rates["in-process loop"]
    report(
        "throughput",
        [
            {
                "way": way,
                "images/s": median(rate),
                "ratio to in-process": median(r / b for r, b in zip(rate, base, strict=True)),
                "ratios by round": ", ".join(
                    f"{r / b:.3f}" for r, b in zip(rate, base, strict=True)
                ),
            }
            for way, rate in rates.items()
        ],
    )


def round_trip(fleet: TestFleet) -> None:
    worker = fleet.start_sleeper()
    empty = GenerateRequest(prompt="nothing 0", checkpoint="demo", width=64, height=64)
    fleet.client.generate(empty).result(timeout=30)
    whole, engine = [], []
    for _ in range(EMPTY_JOBS):
        started = time.perf_counter()
        result = fleet.client.generate(empty).result(timeout=30)
        whole.append((time.perf_counter() - started) * 1000)
        engine.append(result.timings.store_s * 1000)
    worker.stop()
    queue = [total - store for total, store in zip(whole, engine, strict=True)]
    report(
        "round_trip",
        [
            {
                "part": part,
                "median ms": median(times),
                "p95 ms": sorted(times)[len(times) * 95 // 100],
            }
            for part, times in (
                ("submit to result, all of it", whole),
                ("encode and store", engine),
                ("queue and ledger", queue),
            )
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="imagefleet-bench-") as name, servers(Path(name)) as environment:
        folder = Path(name)
        (folder / "models/checkpoints").mkdir(parents=True)
        write_demo_checkpoint(folder / "models/checkpoints/demo.safetensors", "sd1", seed=0)
        os.environ.update(environment)
        fleet = TestFleet(environment, folder)
        try:
            throughput(fleet, folder / "models", arguments.jobs, arguments.rounds)
        finally:
            fleet.close()
        # A directory answers at once: what is left is queue, ledger and encoding.
        environment["IMAGEFLEET_STORAGE_URL"] = (folder / "store").as_uri()
        os.environ.update(environment)
        fleet = TestFleet(environment, folder)
        try:
            round_trip(fleet)
        finally:
            fleet.close()


if __name__ == "__main__":
    main()
