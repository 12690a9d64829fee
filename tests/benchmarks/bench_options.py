"""The effect of each engine option, compared with none, alternating in one run.

    python tests/benchmarks/bench_options.py [--quick] [--family sd1] [--batch 4]

On a GPU: full-size SD 1.5 at 512x512 and SDXL at 1024x1024, with random fp16 weights. Otherwise the
demo checkpoint and a toy SDXL at 128x128 in fp32, on one thread, timed in CPU seconds.

- step_s: one guided evaluation of the UNet for the whole batch; decode_s: of one picture.
- images/s: at 25 steps, computed from these two, without text encoders, image encoding and storage.
- x: speed-up of a step over none.
- of_matmul: FLOP/s of a step, as a share of what a large matrix product reaches on this device in
  this dtype. Above 1 on a CPU whose convolutions use a faster library than its products.
- first_s: wall seconds until the first picture is possible, with nothing compiled; again_s: with
  the compiled code on disk.
- switch_s: switching to another LoRA of rank 16 on every linear layer; compiled_anew: graphs that
  were recompiled because of it.

`--quick` is for tests: a tiny SD 1.x checkpoint and few options on the CPU.
"""

# Dynamo's reset has no public name.
# pyright: reportPrivateUsage=false

import argparse
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

# Run as a script, Python would look for modules only in its folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from imagefleet_worker.device.compile import set_up_compiler, why_no_compiler
from imagefleet_worker.device.presets import Options
from imagefleet_worker.weights.families import Family
from tests.benchmarks.options_trial import Trial, matmul_flops, time_alternately
from tests.benchmarks.report import report
from tests.full_size import write_full_size
from tests.options import PLAIN
from tests.tiny_models import write_tiny_models
from tools.make_demo_checkpoint import write_demo_checkpoint

_ROOT = Path(__file__).parents[2]
_STEPS = 25
_FAMILIES: tuple[Family, ...] = ("sd1", "sdxl")

_BOTH: dict[str, Options] = {
    "channels_last": replace(PLAIN, channels_last=True),
    "sliced": replace(PLAIN, attention="sliced"),
    "compile": replace(PLAIN, compile=True),
    "compile and channels_last": replace(PLAIN, compile=True, channels_last=True),
}
_GPU: dict[str, Options] = {
    "cuda_graphs": replace(PLAIN, cuda_graphs=True),
    "all but sliced": replace(PLAIN, channels_last=True, compile=True, cuda_graphs=True),
    "model offload": replace(PLAIN, offload="model"),
}
_SEQUENTIAL: dict[str, Options] = {"sequential offload": replace(PLAIN, offload="sequential")}

Row = dict[str, str | float]


@dataclass(frozen=True)
class Bench:
    """Where and how to measure."""

    device: torch.device
    dtype: torch.dtype
    batches: Sequence[int]
    flops: float
    """FLOP/s that a large matrix product reaches."""
    folder: Path
    """For checkpoints and compiled code; empty at the start."""
    quick: bool

    def size_px(self, family: Family) -> int:
        if self.device.type == "cpu":
            return 128
        return 512 if family == "sd1" else 1024

    def checkpoint(self, family: Family) -> Path:
        if self.quick:
            write_tiny_models(self.folder / "tiny")
            return self.folder / "tiny/checkpoints/demo.safetensors"
        if self.device.type == "cpu" and family == "sd1":
            return _ROOT / "worker/models/checkpoints/demo.safetensors"
        path = self.folder / f"{family}.safetensors"
        if not path.exists():
            if self.device.type == "cpu":
                write_demo_checkpoint(path, family, seed=0)
            else:
                write_full_size(path, family)
        return path


@torch.no_grad()
def measure(bench: Bench, family: Family, options: Mapping[str, Options]) -> Iterator[Row]:
    """Yield one row for each option and batch size; the first ones are without any option."""
    path, size_px = bench.checkpoint(family), bench.size_px(family)
    plain = Trial(path, bench.device, bench.dtype, PLAIN)
    for name, option in {"none": PLAIN, **options}.items():
        if option.compile:
            torch._dynamo.reset()
            # No spaces: the path is passed to g++ unquoted.
            set_up_compiler(bench.folder / f"{family}-{name}".replace(" ", "-"))
        trial = Trial(path, bench.device, bench.dtype, option)
        first_s = again_s = trial.first_s(trial.call(1, size_px))
        if option.compile:
            torch._dynamo.reset()
            # Otherwise it would count towards the memory in use before the next trial.
            del trial
            gc.collect()
            trial = Trial(path, bench.device, bench.dtype, option)
            again_s = trial.first_s(trial.call(1, size_px))
        for batch in bench.batches:
            yield {
                "family": family,
                "option": name,
                "batch": batch,
                **_timed(bench, plain, trial, batch, size_px),
                "first_s": first_s,
                "again_s": again_s,
            }
        del trial
        gc.collect()


def _timed(bench: Bench, plain: Trial, trial: Trial, batch: int, size_px: int) -> Row:
    call = trial.call(batch, size_px)
    flop = plain.flop(call)
    # Compile and record graphs for the batch before timing.
    peak_bytes = trial.peak_bytes(lambda: trial.first_s(call))
    plain_s, step_s = time_alternately(
        lambda: plain.denoise(call), lambda: trial.denoise(call), bench.device
    )
    _, decode_s = time_alternately(
        lambda: plain.decode(call), lambda: trial.decode(call), bench.device
    )
    switch_s, compiled_anew = trial.switch(call)
    return {
        "step_s": step_s,
        "x": plain_s / step_s,
        "decode_s": decode_s,
        "it/s": 1 / step_s,
        "images/s": batch / (_STEPS * step_s + batch * decode_s),
        "of_matmul": flop / step_s / bench.flops,
        "peak_gb": peak_bytes / 1e9,
        "switch_s": switch_s,
        "compiled_anew": compiled_anew,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time engine options.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--family", choices=_FAMILIES, action="append")
    parser.add_argument("--batch", type=int, action="append")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available() and not arguments.quick
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.float16 if gpu else torch.float32
    if not gpu:
        torch.set_num_threads(1)
    options = {**_BOTH, **_GPU, **_SEQUENTIAL} if gpu else {**_BOTH}
    if arguments.quick:
        del options["compile"]
        # Runs, but has no effect: the CPU's memory is the host's.
        options.update(_SEQUENTIAL)
    if reason := why_no_compiler():
        print(f"SKIPPED: options that compile; {reason}")
        options = {name: option for name, option in options.items() if not option.compile}
    default = ("sd1",) if arguments.quick else _FAMILIES
    families = cast("Sequence[Family]", arguments.family or default)
    batches = arguments.batch or (
        (1, 2) if arguments.quick else (1, 2, 4, 8, 16) if gpu else (1, 4)
    )
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        flops = matmul_flops(device, dtype)
        bench = Bench(device, dtype, batches, flops, Path(folder), arguments.quick)
        for family in families:
            for row in measure(bench, family, options):
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                rows.append(row)
    if not arguments.quick:
        where = torch.cuda.get_device_name() if gpu else "CPU, one thread"
        notes = f"{where}; matmul {flops / 1e12:.2f} TFLOP/s in {dtype}"
        report("options_gpu" if gpu else "options", rows, notes)


if __name__ == "__main__":
    main()
