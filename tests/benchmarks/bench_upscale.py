"""SwinIR-M x4 with random weights: our upscaler against plain spandrel; tiles, time and memory.

    python -m tests.benchmarks.bench_upscale [--quick]

The same 512 x 512 picture by spandrel without tiles and by ours with several tile sizes, taking
turns in one process, with the peak memory of each in its own process; and 2048 x 2048 to
8192 x 8192 in its own process, by a small network (SRVGG), so that the picture's memory is measured
and not the network's. Times are CPU seconds of all threads.
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
    """SwinIR as published for real-world x4, native size 64; SwinIR-M has depth 6."""
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


def prepare(way: str, depth: int, image: Tensor) -> Callable[[], object]:
    """Prepare one of the compared ways, with its own network and no other in memory."""
    if way == _PLAIN:
        return torch.no_grad()(partial(swinir(depth), image))
    dtype, tile_size = _OURS[way]
    return partial(enlarge, Upscaler("swinir", swinir(depth), dtype), image, tile_size)


def compare(depth: int, side: int, rounds: int) -> list[dict[str, str | float]]:
    """The minimum CPU seconds of each way, and its speed-up over spandrel."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    runs = {way: prepare(way, depth, image) for way in (_PLAIN, *_OURS)}
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
            "peak MB": peak_mb_of_process(f"--way={name}", f"--depth={depth}", f"--side={side}"),
        }
        for name, seconds in best.items()
    ]


def peak_mb_of_process(*arguments: str) -> float:
    """Peak memory in MB of a process that runs only this."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def peak_mb() -> float:
    """Peak memory of this process. Not getrusage, which starts from the parent's memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024 / 1e6


def large(side: int) -> None:
    """Enlarge a large picture by a network that takes little memory and time."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "compact.safetensors"
        save_file(Compact(num_feat=64, num_conv=16, upscale=4).state_dict(), path)
        upscaler = load_upscaler(path, torch.device("cpu"), torch.float32)
    enlarge(upscaler, torch.rand(1, 3, side, side), None)


def main() -> None:
    """Print the table; with --way or --large, run only that and print the peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="small pictures as a smoke test, no file"
    )
    parser.add_argument("--way")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--side", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.way or arguments.large:
        if arguments.large:
            large(arguments.side)
        else:
            image = torch.rand(1, 3, arguments.side, arguments.side)
            prepare(arguments.way, arguments.depth, image)()
        print(peak_mb())
        return
    depth, side, large_side, rounds = (1, 64, 128, 1) if arguments.quick else (6, 512, 2048, 2)
    rows = compare(depth, side, rounds)
    rows.append(
        {
            "picture": f"{large_side}x{large_side}",
            "way": "SRVGG (Compact) x4, ours, default",
            "CPU s": cpu_s(lambda: large(large_side)),
            "times as fast": "",
            "peak MB": peak_mb_of_process("--large", f"--side={large_side}"),
        }
    )
    if arguments.quick:
        print(*rows, sep="\n")
        return
    report("upscale", rows, f"torch with {torch.get_num_threads()} threads, float32 unless said")


if __name__ == "__main__":
    main()
