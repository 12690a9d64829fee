"""Images per second: the fleet against plain diffusers and a typical Celery worker, in one run.

    python -m tests.benchmarks.bench_fleet [--jobs 32] [--rounds 3] [--quick]
    python -m tests.benchmarks.bench_fleet --full-size --family sdxl --device cuda

Four ways to render the same jobs, alternating in each round, each warm and in its own process:

- plain diffusers: its pipelines, one job after another, pictures discarded.
- usual Celery worker: `usual_worker.py` on the same Redis and S3, all jobs sent at once.
- engine in process: the worker's engine alone, pictures discarded.
- fleet: one worker process on Redis and S3, all jobs sent at once, pictures stored.

Jobs: `mixed_jobs` on the demo's trained checkpoint. With `--full-size`, jobs that differ in prompt
and seed only, on a checkpoint of full size with random weights, at the family's native size.
`--quick` renders a few jobs in few steps, with `--full-size` on a small checkpoint, and writes no
file.
"""

import argparse
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from celery import Celery

from imagefleet_producer import GenerateRequest
from imagefleet_worker.weights.families import NATIVE_SIZE_PX, Family
from localfleet.process import Process
from localfleet.servers import child_environment
from tests.benchmarks.in_process import InProcessEngine
from tests.benchmarks.mixed_jobs import equal_jobs, mixed_jobs
from tests.benchmarks.plain_diffusers import PlainDiffusers
from tests.benchmarks.report import report
from tests.benchmarks.resident import BenchmarkProcess, Measurement
from tests.benchmarks.services import servers
from tests.demo_renderer import TRAINED
from tests.fleet import REPOSITORY, TestFleet
from tests.full_size import write_full_size
from tools.demo_models import SIZE_PX
from tools.make_demo_checkpoint import write_demo_checkpoint

SLOTS = 32
_STEPS = 20
_QUICK_STEPS = 4
_TIMEOUT_S = 600

Row = dict[str, str | float]
Render = Callable[[Sequence[GenerateRequest]], Measurement]


@dataclass(frozen=True)
class Workload:
    """The jobs to render, and the models."""

    models: Path
    checkpoint: str
    device: str
    jobs: Callable[[int], list[GenerateRequest]]
    """The jobs of a round."""


def demo_workload(jobs: int, steps: int, device: str) -> Workload:
    return Workload(TRAINED, "demo", device, lambda turn: mixed_jobs(jobs, steps, turn))


def full_size_workload(
    folder: Path, family: Family, jobs: int, steps: int, device: str, quick: bool
) -> Workload:
    (folder / "models/checkpoints").mkdir(parents=True)
    path = folder / "models/checkpoints/full-size.safetensors"
    (write_demo_checkpoint if quick else write_full_size)(path, family, 0)
    side = SIZE_PX if quick else NATIVE_SIZE_PX[family]
    jobs_of = partial(equal_jobs, jobs, steps, checkpoint="full-size", side=side)
    return Workload(folder / "models", "full-size", device, jobs_of)


@contextmanager
def usual_worker(
    workload: Workload, environment: Mapping[str, str], folder: Path
) -> Generator[Render]:
    """Start a typical Celery worker; yields the function that renders jobs on it."""
    # Another database of the same server, because the fleet's worker is another Celery application.
    redis = environment["IMAGEFLEET_REDIS_URL"].removesuffix("/0") + "/1"
    app = Celery("usual", broker=redis, backend=redis)
    settings = {
        "BENCH_REDIS_URL": redis,
        "BENCH_MODELS": str(workload.models),
        "BENCH_CHECKPOINT": workload.checkpoint,
        "BENCH_DEVICE": workload.device,
    }
    command = ["-m", "celery", "--app", "tests.benchmarks.usual_worker", "worker"]
    process = Process(
        name="usual worker",
        arguments=[sys.executable, *command, "--pool", "prefork", "--concurrency", "1"],
        url=redis,
        directory=REPOSITORY,
        log=folder / "usual-worker.log",
        environment=child_environment({**environment, **settings}),
        ready=lambda _pid: bool(app.control.ping(timeout=1)),
    )

    def render(requests: Sequence[GenerateRequest]) -> Measurement:
        started = time.perf_counter()
        results = [app.send_task("usual.draw", [request.model_dump_json()]) for request in requests]
        for result in results:
            result.get(timeout=_TIMEOUT_S)
        return Measurement(time.perf_counter() - started, len(requests))

    with process:
        yield render


def through_fleet(fleet: TestFleet, requests: Sequence[GenerateRequest]) -> Measurement:
    started = time.perf_counter()
    jobs = [fleet.client.generate(request) for request in requests]
    results = [job.result(timeout=_TIMEOUT_S) for job in jobs]
    seconds = time.perf_counter() - started
    return Measurement(seconds, sum(1 / result.timings.batch_jobs for result in results))


def measure(workload: Workload, folder: Path, rounds: int) -> list[Row]:
    """One row for each way."""
    # The first round warms up.
    turns = [workload.jobs(turn) for turn in range(rounds + 1)]
    with ExitStack() as stack:
        environment = stack.enter_context(servers(folder, workload.models))
        fleet = TestFleet(environment, folder)
        stack.callback(fleet.close)
        fleet.start_worker(slots=str(SLOTS), device=workload.device)
        plain = partial(PlainDiffusers, workload.models, workload.checkpoint, workload.device)
        engine = partial(InProcessEngine, workload.models, workload.device, SLOTS)
        ways: dict[str, Render] = {
            "plain diffusers": stack.enter_context(BenchmarkProcess(plain)),
            "usual Celery worker": stack.enter_context(usual_worker(workload, environment, folder)),
            "engine in process": stack.enter_context(BenchmarkProcess(engine)),
            "fleet": partial(through_fleet, fleet),
        }
        measurements: dict[str, list[Measurement]] = {way: [] for way in ways}
        for requests in turns:
            for way, render in ways.items():
                measurements[way].append(render(requests))
    return [_row(way, measurements, len(turns[0])) for way in ways]


def _row(way: str, measurements: Mapping[str, Sequence[Measurement]], jobs: int) -> Row:
    own = measurements[way][1:]
    speedups = {
        other: median(base.seconds / one.seconds for one, base in zip(own, rounds[1:], strict=True))
        for other, rounds in measurements.items()
    }
    return {
        "way": way,
        "images/s": median(jobs / one.seconds for one in own),
        "jobs a batch": median(jobs / one.batches for one in own),
        "times plain diffusers": speedups["plain diffusers"],
        "times usual Celery worker": speedups["usual Celery worker"],
        "share of engine in process": speedups["engine in process"],
        "images/s by round": ", ".join(f"{jobs / one.seconds:.3f}" for one in own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the fleet's throughput with other ways.")
    parser.add_argument("--jobs", type=int, default=32, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--family", choices=("sd1", "sdxl"), default="sd1")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    jobs, rounds, steps = arguments.jobs, arguments.rounds, _STEPS
    if arguments.quick:
        jobs, rounds, steps = 8, 1, _QUICK_STEPS
    family: Family = arguments.family
    device: str = arguments.device
    with TemporaryDirectory(prefix="imagefleet-bench-") as name:
        folder = Path(name)
        if arguments.full_size:
            workload = full_size_workload(folder, family, jobs, steps + 5, device, arguments.quick)
        else:
            workload = demo_workload(jobs, steps, device)
        rows = measure(workload, folder, rounds)
    if arguments.quick:
        for row in rows:
            print(", ".join(f"{name} {value}" for name, value in row.items()))
        return
    named = f"fleet_{family}" if arguments.full_size else "fleet"
    report(named, rows, f"{jobs} jobs a round, {rounds} rounds, device {device}")


if __name__ == "__main__":
    main()
