"""The upscaling benchmark runs with `--quick`."""

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_quick_upscale_benchmark_prints_a_row_for_each_way() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.bench_upscale", "--quick"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert run.returncode == 0, run.stderr
    ways = [line.split("'way': '")[1].split("'")[0] for line in run.stdout.splitlines()]
    assert ways[0] == "spandrel, whole"
    assert ways[-2:] == ["ours, bfloat16", "SRVGG (Compact) x4, ours, default"]
