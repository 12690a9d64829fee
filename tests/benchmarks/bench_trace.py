"""Total time of a trace of jobs with many LoRA sets, three ways, in one run.

    python -m tests.benchmarks.bench_trace [--jobs 200] [--quick]

Twenty sets of one to three LoRAs, rank 32; the set of a job follows Zipf's law, the first twice as
often as the second and three times as often as the third. The demo's architecture with random
weights at 128 x 128; few steps, so that switches of LoRAs dominate.

- engine: `Engine` with the real renderer and 32 jobs queued at once, which it batches and reorders.
- arrival order: the same engine with one job at a time.
- diffusers: load, fuse, render, unfuse and unload for each job, in order.

Each in its own process, warmed up with a few other jobs.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from imagefleet_producer import GenerateRequest, LoRA
from tests.benchmarks.bench_switch import write_lora
from tests.benchmarks.in_process import InProcessEngine
from tests.benchmarks.mixed_jobs import equal_jobs
from tests.benchmarks.plain_diffusers import PlainDiffusers
from tests.benchmarks.report import report
from tests.benchmarks.resident import BenchmarkProcess, Contender
from tools.demo_models import SIZE_PX, demo_models
from tools.make_demo_checkpoint import write_demo_checkpoint

_SETS = 20
_LORAS = 24
_RANK = 32
_STEPS = 6
_SLOTS = 32
_WARM_UP_JOBS = 4

Row = dict[str, str | float]


def write_models(folder: Path) -> None:
    """A checkpoint and LoRAs for it, all random."""
    for kind in ("checkpoints", "loras"):
        (folder / kind).mkdir()
    write_demo_checkpoint(folder / "checkpoints/demo.safetensors", "sd1", seed=0)
    unet = demo_models("sd1", seed=0)["unet"]
    assert isinstance(unet, UNet2DConditionModel)
    for seed in range(_LORAS):
        write_lora(folder / f"loras/lora{seed}.safetensors", unet, _RANK, seed)


def trace(jobs: int, seed: int) -> list[GenerateRequest]:
    """Jobs in order of arrival."""
    random = Random(seed)
    sets = [
        tuple(
            LoRA(name=f"lora{number}", scale=random.choice((0.6, 0.8, 1.0)))
            for number in random.sample(range(_LORAS), random.randint(1, 3))
        )
        for _ in range(_SETS)
    ]
    popularity = [1 / rank for rank in range(1, _SETS + 1)]
    requests = equal_jobs(jobs, _STEPS, seed, checkpoint="demo", side=SIZE_PX)
    chosen = random.choices(sets, popularity, k=jobs)
    return [
        request.model_copy(update={"loras": loras})
        for request, loras in zip(requests, chosen, strict=True)
    ]


def measure(models: Path, jobs: int) -> list[Row]:
    """One row for each way."""
    write_models(models)
    ways: dict[str, Callable[[], Contender]] = {
        "engine": partial(InProcessEngine, models, "cpu", _SLOTS),
        "arrival order": partial(InProcessEngine, models, "cpu", 1),
        "diffusers": partial(PlainDiffusers, models, "demo", "cpu", fuse=True),
    }
    seconds: dict[str, float] = {}
    batches: dict[str, float] = {}
    for way, factory in ways.items():
        with BenchmarkProcess(factory) as render:
            render(trace(_WARM_UP_JOBS, seed=1))
            measurement = render(trace(jobs, seed=0))
        seconds[way], batches[way] = measurement.seconds, measurement.batches
    return [
        {
            "way": way,
            "total s": seconds[way],
            "jobs a batch": jobs / batches[way],
            "times as fast as arrival order": seconds["arrival order"] / seconds[way],
            "times as fast as diffusers": seconds["diffusers"] / seconds[way],
        }
        for way in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a trace of jobs with many LoRA sets.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="few jobs, no file")
    arguments = parser.parse_args()
    jobs: int = 8 if arguments.quick else arguments.jobs
    with TemporaryDirectory(prefix="imagefleet-bench-") as name:
        rows = measure(Path(name), jobs)
    if arguments.quick:
        for row in rows:
            print(", ".join(f"{name} {value}" for name, value in row.items()))
    else:
        report("trace", rows, f"{jobs} jobs")


if __name__ == "__main__":
    main()
