"""The throughput benchmarks run with `--quick` and print their rows."""

import subprocess
import sys

import pytest

from tests.fleet import REPOSITORY

pytest.importorskip("peft", reason="diffusers' side of the comparisons needs peft")

_WAYS = ["plain diffusers", "usual Celery worker", "engine in process", "fleet"]
_PNG = ["photograph"] * 5 + ["gallery"] * 5


@pytest.mark.usefixtures("redis_server", "s3_server")
@pytest.mark.parametrize(
    ("command", "rows"),
    [
        ("bench_fleet", [f"way {way}" for way in _WAYS]),
        ("bench_fleet --full-size --family sdxl", [f"way {way}" for way in _WAYS]),
        ("bench_trace", ["way engine", "way arrival order", "way diffusers"]),
        ("bench_idle", ["jobs 12"]),
        ("bench_png", [f"picture {picture}" for picture in _PNG]),
        (
            "bench_round_trip",
            ["part submit to result", "part encode and store", "part queue and ledger"],
        ),
    ],
)
def test_a_quick_benchmark_prints_its_rows(command: str, rows: list[str]) -> None:
    module, *options = command.split()

    run = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{module}", "--quick", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert [line.split(",")[0] for line in run.stdout.splitlines()] == rows
