"""What a GPU is worth to the worker, the most valuable figures first, in a few minutes.

    python -m tests.benchmarks.bench_gpu [FOLDER] [--seconds 260] [--quick]

Part of `make gpu-check`. Every row is appended to FOLDER/gpu_check.jsonl as soon as it is measured,
so that a run that is cut off keeps what it has; items for which there is no time left say so.
Full-size SD 1.5 at 512x512 and SDXL at 1024x1024 with random fp16 weights, 25 steps.

- machine: versions, and TFLOP/s of a large matrix product, the ceiling for `of_matmul`.
- flop: of one guided evaluation of the UNet for one picture.
- plain, graphs, fast: UNet and VAE without options, with channels_last and CUDA graphs, and
  compiled too; columns as in `bench_options`, and the kernels that take longest.
- engine: jobs that differ in prompt and seed only, from request to picture, without queue or store.
- pictures to host; cudnn.benchmark, cuDNN attention, NCHW: alternatives to what the worker does.

`--quick` tries all of it on small checkpoints, also on a CPU, where its figures mean little.
"""

import argparse
import platform
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from imagefleet_worker.device.transfer import release_cached_memory
from tests.benchmarks.gpu_engine import EngineRows, picture_rows
from tests.benchmarks.gpu_setup import FAMILIES, Setup
from tests.benchmarks.gpu_unet import UNetRows
from tests.benchmarks.timed_items import Item, Row, RowFile, TimeBudget, measure_items

_SDE = {"scheduler": "dpmpp_2m_sde"}


def machine_rows(setup: Setup) -> Iterator[Row]:
    yield {
        "device": torch.cuda.get_device_name() if setup.on_gpu else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "matmul_tflops": setup.matmul_flops / 1e12,
        "why_not_compiled": setup.why_not_compiled,
    }


def all_items(setup: Setup, budget: TimeBudget) -> list[Item]:
    """Everything to measure, the most valuable first."""
    unet = {family: UNetRows(setup, family) for family in FAMILIES}
    turns = EngineRows(setup, budget).turns
    items = [Item(name="machine", needs_s=2, measure=partial(machine_rows, setup))]
    for name, rows in unet.items():
        items.append(Item(name=f"flop {name}", needs_s=5, measure=rows.flop))
    for name, rows in unet.items():
        items += [
            Item(name=f"plain {name}", needs_s=20, measure=rows.plain),
            Item(name=f"graphs {name}", needs_s=20, measure=rows.graphs),
        ]
    for name, rows in unet.items():
        items.append(Item(name=f"fast {name}", needs_s=60, measure=rows.fast))
    for name in FAMILIES:
        items.append(Item(name=f"engine {name}", needs_s=30, measure=partial(turns, name, 3)))
    sde = partial(turns, "sd1", 2, changes=_SDE)
    sde_gpu = partial(turns, "sd1", 2, changes={**_SDE, "rng": "gpu"})
    items += [
        Item(name="engine sd1, SDE, CPU noise", needs_s=15, measure=sde),
        Item(name="engine sd1, SDE, GPU noise", needs_s=15, measure=sde_gpu),
        Item(name="engine sd1, 8 slots", needs_s=10, measure=partial(turns, "sd1", 2, slots=8)),
        Item(name="pictures to host", needs_s=3, measure=partial(picture_rows, setup)),
    ]
    for name, rows in unet.items():
        items += [
            Item(name=f"cudnn.benchmark {name}", needs_s=15, measure=rows.cudnn_benchmark),
            Item(name=f"cuDNN attention {name}", needs_s=15, measure=rows.cudnn_attention),
            Item(name=f"NCHW {name}", needs_s=15, measure=rows.nchw),
        ]
    return items


def measure(setup: Setup, budget: TimeBudget, file: RowFile) -> bool:
    """Write the rows of all items for which there is time; False: one failed."""
    setup.write_checkpoints()
    return measure_items(
        all_items(setup, budget),
        budget,
        file.write,
        is_device_lost=setup.memory.is_lost,
        release_memory=partial(release_cached_memory, setup.device),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the worker on a GPU.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("out/gpu-check"))
    parser.add_argument("--seconds", type=float, default=260, help="time for all of it")
    parser.add_argument("--work", type=Path, help="for checkpoints and compiled code; kept")
    parser.add_argument("--prepare", action="store_true", help="only write the checkpoints")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    budget = TimeBudget(arguments.seconds)
    folder: Path = arguments.folder
    with TemporaryDirectory(prefix="imagefleet-bench-") as temporary:
        setup = Setup(folder=arguments.work or Path(temporary), quick=arguments.quick)
        if arguments.prepare:
            setup.write_checkpoints()
            return
        if not setup.on_gpu and not setup.quick:
            print("NOT RUN: full-size measurements need CUDA, there is none here; try --quick")
            return
        if not setup.on_gpu:
            # Small models: threads would wait for each other most of the time.
            torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        if not measure(setup, budget, RowFile(folder / "gpu_check.jsonl")):
            sys.exit("a measurement failed; its row has the error")


if __name__ == "__main__":
    main()
