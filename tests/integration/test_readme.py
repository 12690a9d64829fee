"""The README agrees with the code, and its examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from localfleet.servers import child_environment
from tests.fleet import REPOSITORY, TestFleet
from tools.make_readme_tables import README, fill_tables


def test_the_tables_are_up_to_date() -> None:
    assert fill_tables(README.read_text()) == README.read_text(), (
        "run python -m tools.make_readme_tables"
    )


def test_every_named_make_target_and_file_exists() -> None:
    text = README.read_text() + (REPOSITORY / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", text)) <= targets
    for name in re.findall(r"\]\(([A-Za-z.]+)\)", text):
        assert (REPOSITORY / name).exists(), name


def test_the_enqueue_script_runs(
    redis_url: str,
    s3_settings_env: dict[str, str],
    demo_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = re.search(r"<!-- example: enqueue -->\n```python\n(.*?)```", README.read_text(), re.S)
    assert script
    environment = {
        **s3_settings_env,
        "IMAGEFLEET_REDIS_URL": redis_url,
        "IMAGEFLEET_MODELS_DIR": str(demo_models),
        "IMAGEFLEET_DEFAULT_CHECKPOINT": "demo",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fleet = TestFleet(environment, tmp_path)
    try:
        fleet.start_worker()
        done = subprocess.run(
            [sys.executable, "-c", script[1]],
            cwd=tmp_path,
            env=child_environment(environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        fleet.close()
    assert done.returncode == 0, done.stderr
    assert "succeeded done" in done.stdout
    for name, side in (("fox.png", 256), ("fox-large.png", 512)):
        with Image.open(tmp_path / name) as image:
            assert image.size == (side, side)
