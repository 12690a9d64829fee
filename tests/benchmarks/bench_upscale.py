"""SwinIR-M x4 (random weights) by ours against spandrel's called plainly; tiles, time and memory.

    python -m tests.benchmarks.bench_upscale [--quick]

Three tables: the same 512 x 512 picture by spandrel whole and by ours, taking turns in one process,
with the peak memory of each in a process of its own; ours by tile size; and 2048 x 2048 to
8192 x 8192 in a process of its own, by a small network (SRVGG: what is measured is the picture, not
the network) and, without --quick, nothing else large. Seconds are CPU seconds of all threads.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

from imagefleet_worker.upscale.load import load_upscaler
from imagefleet_worker.upscale.memory import CPU_TILE_PX
from imagefleet_worker.upscale.upscaler import Upscaler
from tests.benchmarks.report import report

_OVERLAP = 16
_TILES = (128, 192, CPU_TILE_PX)


def swinir(depth: int) -> ImageModelDescriptor[nn.Module]:
    """SwinIR as published for real-world x4, native size 64; M has a depth of 6."""
    torch.manual_seed(0)
    network = SwinIR(
        img_size=64,
        embed_dim=180,
        depths=[6] * depth,
        num_heads=[6] * depth,
        window_size=8,
        mlp_ratio=2,
        upscale=4,
        upsampler="nearest+conv",
    )
    descriptor = ModelLoader("cpu").load_from_state_dict(network.state_dict())
    assert isinstance(descriptor, ImageModelDescriptor)
    return descriptor.eval()


def enlarge(upscaler: Upscaler, image: Tensor, tile_size: int | None) -> None:
    upscaler.upscale(
        image, tile_size=tile_size, tile_overlap=_OVERLAP, on_tile=lambda done, total: None
    )


def cpu_s(run: Callable[[], object]) -> float:
    """CPU seconds of all threads that one call takes."""
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


_PLAIN = "spandrel, whole"
_OURS: dict[str, tuple[torch.dtype, int | None]] = {
    **{f"ours, tiles of {size}": (torch.float32, size) for size in _TILES},
    "ours, default": (torch.float32, None),
    "ours, bfloat16": (torch.bfloat16, None),
}
"""Precision and tile size."""


def prepared(way: str, depth: int, image: Tensor) -> Callable[[], object]:
    """One of the ways that are compared, with a network of its own: memory holds no other."""
    if way == _PLAIN:
        return torch.no_grad()(partial(swinir(depth), image))
    dtype, tile_size = _OURS[way]
    return partial(enlarge, Upscaler("swinir", swinir(depth), dtype), image, tile_size)


def compare(depth: int, side: int, rounds: int) -> list[dict[str, str | float]]:
    """The least CPU seconds of each way, and how much faster than spandrel it is."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    runs = {way: prepared(way, depth, image) for way in (_PLAIN, *_OURS)}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], cpu_s(run))
    plain_s = best[_PLAIN]
    return [
        {
            "picture": f"{side}x{side}",
            "way": name,
            "CPU s": seconds,
            "times as fast": plain_s / seconds,
            "peak MB": alone(f"--way={name}", f"--depth={depth}", f"--side={side}"),
        }
        for name, seconds in best.items()
    ]


def alone(*arguments: str) -> float:
    """Peak memory in MB of a process that does one thing."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def peak_mb() -> float:
    """Of this process so far. Not by getrusage: that begins with the parent's memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024 / 1e6


def large(side: int) -> None:
    """Enlarge a large picture by a network whose own memory and time are small."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "compact.safetensors"
        save_file(Compact(num_feat=64, num_conv=16, upscale=4).state_dict(), path)
        upscaler = load_upscaler(path, torch.device("cpu"), torch.float32)
    enlarge(upscaler, torch.rand(1, 3, side, side), None)


def main() -> None:
    """Print the tables; with --way or --large, do that and print the peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small: a smoke test, no figures")
    parser.add_argument("--way")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--side", type=int, default=512)
    asked = parser.parse_args()
    if asked.way or asked.large:
        if asked.large:
            large(asked.side)
        else:
            image = torch.rand(1, 3, asked.side, asked.side)
            prepared(asked.way, asked.depth, image)()
        print(peak_mb())
        return
    depth, side, large_side, rounds = (1, 64, 128, 1) if asked.quick else (6, 512, 2048, 2)
    rows = compare(depth, side, rounds)
    rows.append(
        {
            "picture": f"{large_side}x{large_side}",
            "way": "SRVGG (Compact) x4, ours, default",
            "CPU s": cpu_s(lambda: large(large_side)),
            "times as fast": "",
            "peak MB": alone("--large", f"--side={large_side}"),
        }
    )
    if asked.quick:
        print(*rows, sep="\n")
        return
    report("upscale", rows, f"torch with {torch.get_num_threads()} threads, float32 unless said")


if __name__ == "__main__":
    main()
