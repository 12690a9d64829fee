"""Pictures a second: the fleet against plain diffusers and a usual Celery worker, in one run.

    python -m tests.benchmarks.bench_fleet [--jobs 32] [--rounds 3] [--quick]
    python -m tests.benchmarks.bench_fleet --full-size --family sdxl --device cuda

Four ways to draw the same jobs, turn about in each round, each warm and in a process of its own:

- plain diffusers: its pipelines, one job after another, pictures dropped.
- usual Celery worker: `usual_worker.py` on the same Redis and S3, jobs sent all at once.
- engine in process: the worker's engine alone, pictures dropped.
- fleet: one worker process on Redis and S3, jobs sent all at once, pictures in the store.

Jobs: `mixed_jobs` on the demo's trained checkpoint. With `--full-size`, jobs that differ in prompt
and seed only, on a checkpoint of full size with random weights, at the family's native size.
`--quick` draws a few jobs in few steps, at full size on a small checkpoint, and writes no file.
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
from tests.benchmarks.in_process import InProcess
from tests.benchmarks.mixed_jobs import equal_jobs, mixed_jobs
from tests.benchmarks.plain_diffusers import PlainDiffusers
from tests.benchmarks.report import report
from tests.benchmarks.resident import Drawn, Resident
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
Draw = Callable[[Sequence[GenerateRequest]], Drawn]


@dataclass(frozen=True)
class Work:
    """What is drawn, and with which models."""

    models: Path
    checkpoint: str
    device: str
    jobs: Callable[[int], list[GenerateRequest]]
    """Those of a round."""


def demo_work(jobs: int, steps: int, device: str) -> Work:
    return Work(TRAINED, "demo", device, lambda turn: mixed_jobs(jobs, steps, turn))


def full_size_work(
    folder: Path, family: Family, jobs: int, steps: int, device: str, quick: bool
) -> Work:
    (folder / "models/checkpoints").mkdir(parents=True)
    path = folder / "models/checkpoints/full-size.safetensors"
    (write_demo_checkpoint if quick else write_full_size)(path, family, 0)
    side = SIZE_PX if quick else NATIVE_SIZE_PX[family]
    jobs_of = partial(equal_jobs, jobs, steps, checkpoint="full-size", side=side)
    return Work(folder / "models", "full-size", device, jobs_of)


@contextmanager
def usual_worker(work: Work, environment: Mapping[str, str], folder: Path) -> Generator[Draw]:
    """A usual Celery worker, started."""
    # Another database of the same server: the fleet's worker is of another Celery application.
    redis = environment["IMAGEFLEET_REDIS_URL"].removesuffix("/0") + "/1"
    app = Celery("usual", broker=redis, backend=redis)
    settings = {
        "BENCH_REDIS_URL": redis,
        "BENCH_MODELS": str(work.models),
        "BENCH_CHECKPOINT": work.checkpoint,
        "BENCH_DEVICE": work.device,
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

    def draw(requests: Sequence[GenerateRequest]) -> Drawn:
        started = time.perf_counter()
        sent = [app.send_task("usual.draw", [one.model_dump_json()]) for one in requests]
        for one in sent:
            one.get(timeout=_TIMEOUT_S)
        return Drawn(time.perf_counter() - started, len(requests))

    with process:
        yield draw


def through_fleet(fleet: TestFleet, requests: Sequence[GenerateRequest]) -> Drawn:
    started = time.perf_counter()
    jobs = [fleet.client.generate(request) for request in requests]
    results = [job.result(timeout=_TIMEOUT_S) for job in jobs]
    seconds = time.perf_counter() - started
    return Drawn(seconds, sum(1 / result.timings.batch_jobs for result in results))


def measure(work: Work, folder: Path, rounds: int) -> list[Row]:
    """A row for each way."""
    # The first of them warms up.
    turns = [work.jobs(turn) for turn in range(rounds + 1)]
    with ExitStack() as stack:
        environment = stack.enter_context(servers(folder, work.models))
        fleet = TestFleet(environment, folder)
        stack.callback(fleet.close)
        fleet.start_worker(slots=str(SLOTS), device=work.device)
        plain = partial(PlainDiffusers, work.models, work.checkpoint, work.device)
        engine = partial(InProcess, work.models, work.device, SLOTS)
        ways: dict[str, Draw] = {
            "plain diffusers": stack.enter_context(Resident(plain)),
            "usual Celery worker": stack.enter_context(usual_worker(work, environment, folder)),
            "engine in process": stack.enter_context(Resident(engine)),
            "fleet": partial(through_fleet, fleet),
        }
        drawn: dict[str, list[Drawn]] = {way: [] for way in ways}
        for requests in turns:
            for way, draw in ways.items():
                drawn[way].append(draw(requests))
    return [_row(way, drawn, len(turns[0])) for way in ways]


def _row(way: str, drawn: Mapping[str, Sequence[Drawn]], jobs: int) -> Row:
    ours = drawn[way][1:]
    over = {
        other: median(
            base.seconds / one.seconds for one, base in zip(ours, rounds[1:], strict=True)
        )
        for other, rounds in drawn.items()
    }
    return {
        "way": way,
        "images/s": median(jobs / one.seconds for one in ours),
        "jobs a batch": median(jobs / one.batches for one in ours),
        "times plain diffusers": over["plain diffusers"],
        "times usual Celery worker": over["usual Celery worker"],
        "share of engine in process": over["engine in process"],
        "images/s by round": ", ".join(f"{jobs / one.seconds:.3f}" for one in ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the fleet against usual ways.")
    parser.add_argument("--jobs", type=int, default=32, help="of a round")
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
            work = full_size_work(folder, family, jobs, steps + 5, device, arguments.quick)
        else:
            work = demo_work(jobs, steps, device)
        rows = measure(work, folder, rounds)
    if arguments.quick:
        for row in rows:
            print(", ".join(f"{name} {value}" for name, value in row.items()))
        return
    named = f"fleet_{family}" if arguments.full_size else "fleet"
    report(named, rows, f"{jobs} jobs a round, {rounds} rounds, device {device}")


if __name__ == "__main__":
    main()
