"""The benchmark of engine options runs with `--quick`, on the CPU at toy size."""

import subprocess
import sys
from pathlib import Path

from imagefleet_worker.device.compile import why_no_compiler

_ROOT = Path(__file__).parents[2]
_UNCOMPILED = ("none", "channels_last", "sliced")
_COMPILED = ("compile and channels_last",)
_LAST = ("sequential offload",)


def test_quick_options_benchmark_prints_a_row_for_each_option_and_batch() -> None:
    script = "tests/benchmarks/bench_options.py"

    run = subprocess.run(
        [sys.executable, script, "--quick"], cwd=_ROOT, capture_output=True, text=True, timeout=900
    )

    assert run.returncode == 0, run.stderr
    rows = [
        dict(cell.split(" ", 1) for cell in line.split(", "))
        for line in run.stdout.splitlines()
        if line.startswith("family ")
    ]
    compiled = () if why_no_compiler() else _COMPILED
    assert [(row["option"], row["batch"]) for row in rows] == [
        (option, batch) for option in (*_UNCOMPILED, *compiled, *_LAST) for batch in ("1", "2")
    ]
    assert {row["compiled_anew"] for row in rows} == {"0"}
