"""Check and measure on a GPU machine, in at most 8 minutes; `make gpu-check` runs it.

    python3 -m tools.gpu_check [--quick]

Runs the tests under tests/gpu, then tests.benchmarks.bench_gpu. All that it writes is in $OUT, or
else in out/gpu-check. Exits with 1 if a test or a measurement failed or did not end in time.

It needs no `make setup`: all runs with .venv's Python if there is one. Else with the one that runs
this module, which must have torch and transformers; for what it lacks, the wheels in .whl (see
`make gpu-wheels`) are installed into a temporary folder first. `--quick` tries the same on a CPU:
tests that need CUDA are skipped, and measurements use small models.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

_ROOT = Path(__file__).parents[1]

# Seconds from the start, on a GPU machine: 480 in all.
_ALONE_END_S = 90
_TESTS_END_S = 215
# The benchmark counts its own time once everything is imported.
_MEASURED_S = 450
_END_S = 468
# For a process to end in order once it is interrupted.
_GRACE_S = 10
# A CPU with --quick may be slow, and nobody pays for its time by the second.
_QUICK_FACTOR = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """What all parts of the check share."""

    python: Path
    environment: Mapping[str, str]
    output: Path
    """Folder for what is kept."""
    work: Path
    """Temporary folder for checkpoints and compiled code."""
    quick: tuple[str, ...]
    """The option for the parts, or nothing."""
    started_s: float

    def left_s(self, end_s: float) -> float:
        """Seconds until so many from the start, at least 0."""
        factor = _QUICK_FACTOR if self.quick else 1
        return max(0.0, self.started_s + factor * end_s - time.monotonic())

    def start(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start Python in the repository's root; its output goes to the log, if there is one."""
        command = [str(self.python), *arguments]
        if log is None:
            return subprocess.Popen(command, cwd=_ROOT, env=self.environment)
        with log.open("wb") as stream:
            return subprocess.Popen(
                command, cwd=_ROOT, env=self.environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def finish(self, process: subprocess.Popen[bytes], end_s: float) -> int:
        """The exit status of a process, which is ended at so many seconds from the start."""
        with suppress(subprocess.TimeoutExpired):
            return process.wait(self.left_s(end_s))
        # pytest then reports what it knows so far, the benchmark writes which item was cut off.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_GRACE_S)
        process.kill()
        return process.wait()


def run_check(check: Check) -> bool:
    """Test and measure.

    Returns:
        Whether nothing failed.

    Raises:
        SystemExit: the check cannot run on this machine.
    """
    machine = check.output / "machine.txt"
    machine_process = check.start("-m", "tools.gpu_machine", *check.quick, log=machine)
    cannot_run = check.finish(machine_process, _ALONE_END_S)
    print(machine.read_text(), flush=True)
    if cannot_run:
        sys.exit(1)
    # The measurements need them, and they take a minute at full size.
    checkpoints = _start_bench(check, "--prepare")
    tested = run_tests(check)
    prepared = check.finish(checkpoints, _MEASURED_S) == 0
    seconds = f"{check.left_s(_MEASURED_S):.0f}"
    measured = check.finish(_start_bench(check, "--seconds", seconds), _END_S) == 0
    return tested and prepared and measured


def run_tests(check: Check) -> bool:
    """Run the tests under tests/gpu; whether none failed, and all ended in time."""
    alone = _start_tests(check, "whole-card", "whole_card")
    statuses = {"whole-card": check.finish(alone, _ALONE_END_S)}
    compiling = _start_tests(check, "compiling", "compiles and not whole_card")
    others = _start_tests(check, "others", "not compiles and not whole_card")
    statuses["others"] = check.finish(others, _TESTS_END_S)
    statuses["compiling"] = check.finish(compiling, _TESTS_END_S)
    for name, status in statuses.items():
        print((check.output / f"tests-{name}.txt").read_text(errors="replace"))
        print(f"tests, {name}: exit status {status}", flush=True)
    return not any(statuses.values())


def _start_tests(check: Check, name: str, markers: str) -> subprocess.Popen[bytes]:
    """Start pytest on the tests with these markers; it writes a text and a JUnit file."""
    return check.start(
        *("-m", "pytest", "tests/gpu", "-m", markers, "-p", "no:cacheprovider"),
        # Versions may be newer than the pinned ones: their warnings are no errors here.
        *("-v", "-rfEs", "--tb=short", "-W", "default"),
        f"--junitxml={check.output / f'tests-{name}.xml'}",
        log=check.output / f"tests-{name}.txt",
    )


def _start_bench(check: Check, *options: str) -> subprocess.Popen[bytes]:
    module = ("-m", "tests.benchmarks.bench_gpu", str(check.output), "--work", str(check.work))
    return check.start(*module, *check.quick, *options)


def _environment(site: Path) -> dict[str, str]:
    """This process's own, in which the project can be imported and nothing is downloaded."""
    sources = [site, _ROOT, *(_ROOT / name for name in ("shared", "producer", "worker"))]
    outside = os.environ.get("PYTHONPATH")
    paths = [*map(str, sources), *([outside] if outside else [])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        # A machine's own pytest plugins may warn, or change how tests run.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # Several processes compute at once: threads that spin while they wait starve the others.
        "OMP_WAIT_POLICY": "passive",
    }


def _install_wheels(site: Path) -> None:
    """Install the wheels in .whl, if there are any, into a folder; compiled when imported."""
    if wheels := [str(wheel) for wheel in sorted((_ROOT / ".whl").glob("*.whl"))]:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site)]
        subprocess.run([*command, *wheels], check=True)


def main() -> None:
    started_s = time.monotonic()
    parser = argparse.ArgumentParser(description="Check and measure on a GPU machine.")
    parser.add_argument("--quick", action="store_true", help="try it on a CPU")
    quick = ("--quick",) if parser.parse_args().quick else ()
    # Children inherit it; what a shell starts in the background ignores interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = Path(os.environ.get("OUT") or _ROOT / "out/gpu-check").resolve()
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu_check.jsonl").unlink(missing_ok=True)
    python = _ROOT / ".venv/bin/python"
    with TemporaryDirectory(prefix="imagefleet-gpu-check-") as name:
        work = Path(name)
        if not python.exists():
            python = Path(sys.executable)
            _install_wheels(work / "site")
        environment = _environment(work / "site")
        passed = run_check(
            Check(
                python=python,
                environment=environment,
                output=output,
                work=work,
                quick=quick,
                started_s=started_s,
            )
        )
    took_s = time.monotonic() - started_s
    print(f"{'passed' if passed else 'FAILED'} after {took_s:.0f} s; files: {output}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
