"""A worker whose renderer only sleeps; everything around the engine is the real thing.

    python -m tests.chaos.sleeping_worker RUNS [--models] [--supervised]

A prompt is a name and what to do: "fox 0.5" sleeps half a second, "fox hang" hangs the engine, and
"fox die" kills the process. Each rendering appends the name to the file RUNS. A batch takes as long
as its longest job. With --models the job's models are resolved and downloaded; without it torch is
not imported.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import open_store
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.requests.resolved import ResolvedGenerate, ResolvedJob
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.supervisor import Supervisor, WorkerSlot
from imagefleet_worker.worker import Worker
from tests.light_worker import light_parts

STEP_S = 0.01


class SleepingRenderer:
    """A renderer that sleeps, hangs or dies as the prompts say."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def render(
        self, jobs: Sequence[ResolvedJob], progress: BatchProgress
    ) -> list[list[Image.Image]]:
        generates = [job for job in jobs if isinstance(job, ResolvedGenerate)]
        names, commands = zip(*(job.request.prompt.split() for job in generates), strict=True)
        with self._runs.open("a") as runs:
            runs.writelines(f"{name}\n" for name in names)
        deadly, hanging = "die" in commands, "hang" in commands
        steps = 1 if deadly or hanging else round(max(map(float, commands)) / STEP_S)
        progress.begin_stage("denoise", steps)
        if deadly:
            # Wait until the ledger has the stage, which is reported at once.
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(steps):
            time.sleep(10_000 if hanging else STEP_S)
            progress.step()
        return [
            [Image.new("RGB", (64, 64), (seed % 256, 0, 0)) for seed in job.seeds.seeds]
            for job in generates
        ]


def main() -> None:
    runs, *options = sys.argv[1:]
    settings = WorkerSettings()
    if "--supervised" in options:
        command = (sys.executable, "-m", "tests.chaos.sleeping_worker", runs)
        slot = WorkerSlot(f"slot-{os.getpid()}", "cpu")
        Supervisor([slot], settings.stall_timeout_s, settings.drain_timeout_s, command).run()
        return
    beat_fd = int(options[options.index("--beat-fd") + 1]) if "--beat-fd" in options else None
    store, renderer = open_store(StorageSettings()), SleepingRenderer(Path(runs))
    if "--models" in options:
        import torch

        from imagefleet_worker.build import build_parts

        parts = build_parts(settings, torch.device("cpu"), store)
        parts = replace(parts, make_renderer=lambda: renderer)
    else:
        parts = light_parts(renderer, Path(runs).parent)
    Worker(f"sleeper-{os.getpid()}", settings, parts, store, beat_fd).run()


if __name__ == "__main__":
    main()
