"""The worker without its renderer imports no torch: hundreds of such processes fit a machine."""

import json
import subprocess
import sys

import pytest

from tests.fleet import REPOSITORY

HEAVY = {"torch", "torchvision", "diffusers", "transformers", "spandrel", "scipy", "safetensors"}
LIGHT = [
    "imagefleet_worker.__main__",
    "imagefleet_worker.supervisor",
    "imagefleet_worker.worker",
    "imagefleet_worker.catalog.store",
    "imagefleet_worker.engine.engine",
    "imagefleet_worker.jobs.announce",
    "imagefleet_worker.jobs.delivery",
    "imagefleet_worker.jobs.reconcile",
    "imagefleet_worker.requests.resolved",
    "tests.chaos.sleeping_worker",
]
MAX_MB = 150
"""Celery alone takes 53 MB, torch and diffusers 870 MB."""
# Not `ru_maxrss`, which a process inherits from the one that started it.
_IMPORT = """
import json, pathlib, re, sys
__import__(sys.argv[1])
loaded = sorted({name.partition(".")[0] for name in sys.modules})
status = pathlib.Path("/proc/self/status").read_text()
print(json.dumps([loaded, int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024]))
"""


@pytest.mark.parametrize("module", LIGHT)
def test_modules_that_do_not_render_import_no_torch(module: str) -> None:
    """Importing `delivery` took 874 MB and 5.7 s, most of it torch."""
    run = subprocess.run(
        [sys.executable, "-c", _IMPORT, module],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, peak_mb = json.loads(run.stdout)
    assert HEAVY.isdisjoint(loaded)
    assert peak_mb < MAX_MB
