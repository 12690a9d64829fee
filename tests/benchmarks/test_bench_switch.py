"""The benchmark of LoRA switches runs with `--quick`."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="diffusers' side of the comparison needs peft")

_ROOT = Path(__file__).parents[2]


def test_quick_switch_benchmark_prints_a_row_for_each_family() -> None:
    script = "tests/benchmarks/bench_switch.py"

    run = subprocess.run(
        [sys.executable, script, "--quick"], cwd=_ROOT, capture_output=True, text=True, timeout=300
    )

    assert run.returncode == 0, run.stderr
    assert [line.split(",")[0] for line in run.stdout.splitlines()] == ["family sd1", "family sdxl"]
