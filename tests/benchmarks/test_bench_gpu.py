"""The GPU measurements run with `--quick`, also on a CPU, and print all items in order."""

import json
import subprocess
import sys
from pathlib import Path

from tests.fleet import REPOSITORY

_ITEMS = [
    *("machine", "flop sd1", "flop sdxl"),
    *("plain sd1", "graphs sd1", "plain sdxl", "graphs sdxl", "fast sd1", "fast sdxl"),
    *("engine sd1", "engine sdxl", "engine sd1, SDE, CPU noise", "engine sd1, SDE, GPU noise"),
    *("engine sd1, 8 slots", "pictures to host"),
    *("cudnn.benchmark sd1", "cuDNN attention sd1", "NCHW sd1"),
    *("cudnn.benchmark sdxl", "cuDNN attention sdxl", "NCHW sdxl"),
]


def bench_gpu(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_gpu", *options, "--quick"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_all_items_are_measured_in_order(tmp_path: Path) -> None:
    run = bench_gpu(str(tmp_path), "--seconds", "800")

    assert run.returncode == 0, run.stdout + run.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["item"] for row in rows)) == _ITEMS
    assert not [row for row in rows if "skipped" in row or "error" in row]
    assert all(row["compiled_anew"] == 0 for row in rows if "compiled_anew" in row)
    engine = [row for row in rows if row["item"] == "engine sd1"]
    assert {"load", "text", "denoise", "decode"} <= set(engine[0]["stages_s"])


def test_failed_measurements_say_why_and_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for family in ("sd1", "sdxl"):
        (tmp_path / f"checkpoints/{family}.safetensors").write_bytes(b"no weights")

    run = bench_gpu(str(tmp_path), "--work", str(tmp_path), "--seconds", "800")

    assert run.returncode == 1
    assert "a measurement failed" in run.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    failed = [row["item"] for row in rows if "error" in row]
    assert failed == [item for item in _ITEMS if item not in ("machine", "pictures to host")]
