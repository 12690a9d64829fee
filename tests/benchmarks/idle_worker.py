"""A worker whose renderer sleeps instead of using a GPU and whose store is slow.

    python -m tests.benchmarks.idle_worker LOG BATCH_S SIDE DELAY_S

Each batch takes BATCH_S seconds and returns pictures of SIDE x SIDE pixels. Its start and end, in
seconds, and its number of jobs are appended to LOG. Everything but the renderer and the store's
delay is real.
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


class SlowStore(S3Store):
    """An S3 store that takes some seconds longer for each object."""

    def __init__(self, settings: StorageSettings, delay_s: float) -> None:
        super().__init__(settings, BUCKET, "idle")
        self._delay_s = delay_s

    def put_new(self, key: str, content: bytes, content_type: str) -> StoredObject:
        time.sleep(self._delay_s)
        return super().put_new(key, content, content_type)


class SleepingRenderer:
    """Takes the place of `DiffusionRenderer`."""

    def __init__(self, log: Path, batch_s: float, side: int) -> None:
        self._log, self._step_s = log, batch_s / STEPS
        self._pixels = np.asarray(photograph(side, 0))

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        """Sleep step by step, then return the same picture for every job."""
        started = time.monotonic()
        progress.begin_stage("denoise", STEPS)
        for step in range(1, STEPS + 1):
            # Until a fixed time: a GPU computes on while the host works between two steps.
            time.sleep(max(0.0, started + step * self._step_s - time.monotonic()))
            progress.step()
        ended = time.monotonic()
        with self._log.open("a") as log:
            log.write(f"{started} {ended} {len(jobs)}\n")
        return [[Image.fromarray(self._pixels)] for _ in jobs]


def main() -> None:
    log, batch_s, side, delay_s = sys.argv[1:]
    renderer = SleepingRenderer(Path(log), float(batch_s), int(side))
    Worker(
        f"idle-{os.getpid()}",
        WorkerSettings(),
        light_parts(renderer, Path(log).parent),
        SlowStore(StorageSettings(), float(delay_s)),
        beat_fd=None,
    ).run()


if __name__ == "__main__":
    main()
