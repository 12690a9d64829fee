"""A worker whose engine sleeps in place of the GPU and whose store answers late.

    python -m tests.benchmarks.idle_worker RUNS BATCH_S SIDE STORE_S

Each batch takes BATCH_S seconds and gives pictures of SIDE x SIDE pixels. When a batch began and
ended goes into the file RUNS, seconds. Everything around the engine is the real thing.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import S3Store, StoredObject
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.requests.resolved import ResolvedJob
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.worker import Worker
from localfleet.servers import BUCKET
from tests.benchmarks.photographs import photograph
from tests.light_worker import light_parts

STEPS = 25


class LateStore(S3Store):
    """A store that is so many seconds away for each object."""

    def __init__(self, settings: StorageSettings, late_s: float) -> None:
        super().__init__(settings, BUCKET, "idle")
        self._late_s = late_s

    def put_new(self, key: str, content: bytes, content_type: str) -> StoredObject:
        time.sleep(self._late_s)
        return super().put_new(key, content, content_type)


class SleepingGpu:
    """Stands where the studio stands."""

    def __init__(self, runs: Path, batch_s: float, side: int) -> None:
        self._runs, self._step_s = runs, batch_s / STEPS
        self._pixels = np.asarray(photograph(side, 0))

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        """Sleep step by step, then give every job the same picture."""
        began = time.monotonic()
        progress.begin_stage("denoise", STEPS)
        for step in range(1, STEPS + 1):
            # Up to a moment, as a GPU works on whatever the host does between two steps.
            time.sleep(max(0.0, began + step * self._step_s - time.monotonic()))
            progress.step()
        ended = time.monotonic()
        with self._runs.open("a") as runs:
            runs.write(f"{began} {ended} {len(jobs)}\n")
        return [[Image.fromarray(self._pixels)] for _ in jobs]


def main() -> None:
    runs, batch_s, side, store_s = sys.argv[1:]
    gpu = SleepingGpu(Path(runs), float(batch_s), int(side))
    Worker(
        f"idle-{os.getpid()}",
        WorkerSettings(),
        light_parts(gpu, Path(runs).parent),
        LateStore(StorageSettings(), float(store_s)),
        beat_fd=None,
    ).run()


if __name__ == "__main__":
    main()
