"""Rows of the GPU check about the whole engine, and about pictures on their way to the host."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from time import perf_counter

import torch

from imagefleet_producer import GenerateRequest
from imagefleet_worker.imaging.convert import from_vae_range
from tests.benchmarks.gpu_setup import GpuFamily, Setup
from tests.benchmarks.in_process import InProcessEngine
from tests.benchmarks.mixed_jobs import equal_jobs
from tests.benchmarks.options_trial import best_time
from tests.benchmarks.timed_items import Row, TimeBudget

_LAST_TURN_S = 5


class EngineRows:
    """Measures a worker's engine in this process, with the preset that it chooses for the device.

    The first turn includes loading, compiling and recording graphs.
    """

    def __init__(self, setup: Setup, budget: TimeBudget) -> None:
        self._setup = setup
        self._budget = budget

    def turns(
        self,
        family: GpuFamily,
        turns: int,
        *,
        slots: int = 32,
        changes: dict[str, str] | None = None,
    ) -> Iterator[Row]:
        """One row for each turn, as long as there is time.

        Args:
            family: whose checkpoint renders.
            turns: how often; each with new prompts.
            slots: jobs that are in the engine at once.
            changes: fields of each request that differ from `equal_jobs`.
        """
        setup, sizes = self._setup, self._setup.sizes(family)
        engine = InProcessEngine(
            setup.folder, setup.device.type, slots, compile_cache_dir=setup.compile_cache_dir
        )
        with closing(engine):
            for turn in range(turns):
                jobs = equal_jobs(sizes.jobs, setup.steps, turn, family, sizes.size_px)
                requests = [job.model_copy(update=changes) for job in jobs]
                yield {"turn": turn, **_time_turn(engine, requests)}
                if self._budget.left_s < _LAST_TURN_S:
                    return


def _time_turn(engine: InProcessEngine, requests: list[GenerateRequest]) -> Row:
    started_s = perf_counter()
    outputs = engine.render(requests)
    seconds = perf_counter() - started_s
    # Every job of a batch has the batch's seconds.
    stages_s: defaultdict[str, float] = defaultdict(float)
    for output in outputs:
        for stage, stage_s in output.stages_s.items():
            stages_s[stage] += stage_s / output.batch_jobs
    batches = sum(1 / output.batch_jobs for output in outputs)
    return {
        "images/s": len(outputs) / seconds,
        "seconds": seconds,
        "batches": batches,
        "jobs per batch": len(outputs) / batches,
        "stages_s": stages_s,
        "other_s": seconds - sum(stages_s.values()),
    }


def picture_rows(setup: Setup) -> Iterator[Row]:
    """Seconds from decoded pictures to PIL images, with the arithmetic on device or host."""
    for size_px in (512, 1024):
        yield _time_picture(setup, size_px)


def _time_picture(setup: Setup, size_px: int) -> Row:
    decoded = torch.randn(1, 3, size_px, size_px, device=setup.device, dtype=setup.dtype)
    return {
        "size_px": size_px,
        "on_device_s": best_time(lambda: from_vae_range(decoded), setup.device),
        "on_host_s": best_time(lambda: from_vae_range(decoded.float().cpu()), setup.device),
    }
