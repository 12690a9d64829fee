"""The command line in a shell, with a real worker."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagefleet_shared.image_files import encode_image
from localfleet.environment import child_environment
from tests.fleet import TestFleet, wait_for

COMMAND = Path(sys.executable).with_name("imagefleet")
QUICK = ("--steps", "2", "--seed", "7")
SLOW = ("--steps", "150", "--width", "512", "--height", "512")
TIMEOUT_S = 60


class Shell:
    """Runs the command line in its own folder, as a user of the fleet."""

    def __init__(self, fleet: TestFleet, folder: Path) -> None:
        self.folder = folder
        self._environment = child_environment(fleet.environment)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run the command and return its stdout; fails unless it exits with `code`."""
        done = self.run(*arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self(*arguments, "--json"))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), *arguments],
            env=self._environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )


def shape(path: Path) -> tuple[str | None, tuple[int, int]]:
    """An image file's format and size."""
    with Image.open(path) as image:
        return image.format, image.size


@pytest.fixture
def shell(fleet: TestFleet, tmp_path: Path) -> Shell:
    return Shell(fleet, tmp_path)


def test_generate_saves_the_images_and_prints_where_they_are(
    shell: Shell, fleet: TestFleet
) -> None:
    output = shell("generate", "a fox", *QUICK, "-n", "2")
    files = sorted((shell.folder / "out").iterdir())
    assert len(files) == 2
    for file in files:
        assert shape(file) == ("PNG", (128, 128))
        assert f"out/{file.name}  128x128" in output
    assert f"stored at {fleet.environment['IMAGEFLEET_STORAGE_URL']}/" in output
    for stage in ("queue", "denoise", "decode", "store"):
        assert f"{stage} " in output


def test_generate_with_json_prints_one_json_object_and_nothing_else(shell: Shell) -> None:
    result = shell.json("generate", "a fox", *QUICK, "--out", "images", "--format", "webp")
    [file] = result["files"]
    assert shape(shell.folder / file) == ("WEBP", (128, 128))
    assert Path(file).parent == Path("images")
    assert result["images"][0]["seed"] == 7
    assert result["request"]["prompt"] == "a fox"


def test_every_option_reaches_the_request(shell: Shell) -> None:
    Image.new("RGB", (72, 64), "teal").save(shell.folder / "start.png")
    result = shell.json(
        *("generate", "a fox", "--negative", "fog", "--checkpoint", "demo-xl"),
        *("--width", "128", "--height", "64", "--steps", "4", "--guidance", "3.5"),
        *("--scheduler", "dpmpp_2m", "--sigmas", "karras", "--seed", "9", "--clip-skip", "1"),
        *("--image", "start.png", "--strength", "0.5", "--hires", "1.5"),
        *("--hires-upscaler", "lanczos", "--hires-steps", "2", "--hires-strength", "0.4"),
        *("--upscale", "2", "--upscaler", "demo-x2", "--format", "jpeg", "--priority", "high"),
        *("--time-limit", "50"),
    )
    request = result["request"]
    assert request["image"]["key"].startswith("inputs/")
    del request["image"]
    assert request | {"hires": None, "upscale": None} == request | {
        "prompt": "a fox",
        "negative_prompt": "fog",
        "checkpoint": "demo-xl",
        "width": 128,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 3.5,
        "scheduler": "dpmpp_2m",
        "sigma_schedule": "karras",
        "seed": 9,
        "clip_skip": 1,
        "strength": 0.5,
        "output_format": "jpeg",
        "hires": None,
        "upscale": None,
    }
    assert request["hires"]["scale"] == 1.5
    assert request["hires"]["upscaler"] == "lanczos"
    assert (request["hires"]["num_inference_steps"], request["hires"]["strength"]) == (2, 0.4)
    assert (request["upscale"]["upscaler"], request["upscale"]["scale"]) == ("demo-x2", 2)
    [image] = result["images"]
    assert (image["width"], image["height"]) == (384, 192)


def test_an_image_is_generated_again_and_options_override_it(shell: Shell) -> None:
    options = ("a fox <lora:demo-one:0.5>", *QUICK, "--hires", "1.5", "--hires-steps", "2")
    first = shell.json("generate", *options, "--scheduler", "DPM++ 2M Karras")
    [file] = first["files"]
    again = shell.json("generate", "--from", file, "--out", "again")
    with (
        Image.open(shell.folder / file) as old,
        Image.open(shell.folder / again["files"][0]) as new,
    ):
        assert old.tobytes() == new.tobytes()
    other = shell.json("generate", "an owl", "--from", file, "--hires", "0", "--format", "webp")
    request = other["request"]
    assert (request["prompt"], request["hires"], request["seed"]) == ("an owl", None, 7)
    assert (request["scheduler"], request["sigma_schedule"]) == ("dpmpp_2m", "karras")


def test_labels_of_an_image_that_are_not_used_are_printed(shell: Shell) -> None:
    text = "a fox\nSteps: 2, Sampler: Euler, Schedule type: Karras, Size: 64x64, ENSD: 31337"
    content = encode_image(Image.new("RGB", (8, 8)), "jpeg", text)
    (shell.folder / "theirs.jpg").write_bytes(content)
    done = shell.run("generate", "--from", "theirs.jpg")
    assert done.returncode == 0, done.stderr
    assert "not used: ENSD: 31337" in done.stderr


def test_status_saves_previews_to_a_file(shell: Shell, fleet: TestFleet) -> None:
    job_id = shell("generate", "a fox", *SLOW, "--no-wait").strip()
    preview = shell.folder / "preview.png"
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(shell.run, "status", job_id, "--preview", preview.name)
        wait_for(preview.exists, TIMEOUT_S, "a preview is in the file")
        assert shape(preview) == ("PNG", (512, 512))
        fleet.client.job(job_id).cancel()
        assert watching.result().returncode == 4


def test_upscale_enlarges_a_file(shell: Shell) -> None:
    Image.new("RGB", (40, 24), "teal").save(shell.folder / "small.png")
    result = shell.json("upscale", "small.png", "--scale", "3", "--upscaler", "demo-x4")
    [file] = result["files"]
    assert shape(shell.folder / file) == ("PNG", (120, 72))


def test_upscale_accepts_many_files_and_an_exact_size(shell: Shell) -> None:
    for name, size in (("one.png", (40, 24)), ("two.png", (24, 40))):
        Image.new("RGB", size, "teal").save(shell.folder / name)
    result = shell.json("upscale", "one.png", "two.png", "--upscaler", "nearest")
    assert [shape(shell.folder / file)[1] for file in result["files"]] == [(80, 48), (48, 80)]
    result = shell.json("upscale", "one.png", "two.png", "--width", "50", "--height", "50")
    assert [shape(shell.folder / file)[1] for file in result["files"]] == [(50, 50)] * 2


def test_a_job_can_be_enqueued_watched_and_queried_separately(shell: Shell) -> None:
    job_id = shell("generate", "a fox", *QUICK, "--no-wait").strip()
    assert "succeeded" in shell("status", job_id, "--watch")
    progress = shell.json("status", job_id)
    assert (progress["job_id"], progress["status"], progress["stage"]) == (
        job_id,
        "succeeded",
        "done",
    )
    assert "had ended: succeeded" in shell("cancel", job_id)


def test_a_canceled_job_exits_with_4(shell: Shell, fleet: TestFleet) -> None:
    """A running job was reported as "canceled", although it may still succeed."""
    job_id = shell.json("generate", "a fox", *SLOW, "--no-wait")["job_id"]
    job = fleet.client.job(job_id)
    wait_for(lambda: job.progress().stage == "denoise", TIMEOUT_S, "it runs")
    assert shell("cancel", job_id) == "asked to end\n"
    assert "canceled" in shell("status", job_id, "--watch", code=4)


def test_a_job_past_its_time_limit_exits_with_5(shell: Shell) -> None:
    done = shell.run("generate", "a fox", *SLOW, "--time-limit", "0.5")
    assert done.returncode == 5
    assert "JobTimeout: job" in done.stderr
    assert "0.5 s" in done.stderr


@pytest.mark.parametrize("command", ["status", "cancel"])
def test_an_unknown_job_exits_with_3(shell: Shell, command: str) -> None:
    done = shell.run(command, "no-such-job")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("JobNotFound: no job 'no-such-job'")


def test_a_job_that_the_worker_refuses_exits_with_2(shell: Shell) -> None:
    done = shell.run("generate", "a fox", "--checkpoint", "mona-lisa", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "UnknownCheckpoint: unknown checkpoint 'mona-lisa'; known: demo, demo-xl" in done.stderr


def test_models_lists_the_workers_models(shell: Shell, fleet: TestFleet) -> None:
    table = shell("models")
    for word in ("demo-xl", "sdxl", "sd1", "demo-x4", "upscaler", "checkpoint", "MB"):
        assert word in table
    [worker] = shell.json("models")["workers"]
    assert worker == fleet.client.workers()[0].model_dump(mode="json")
    assert worker["default_checkpoint"] == "demo"


def test_the_demo_generates_and_upscales(shell: Shell) -> None:
    output = shell("demo")
    files = (shell.folder / "out").iterdir()
    assert sorted(shape(file) for file in files) == [("PNG", (256, 256)), ("PNG", (512, 512))]
    assert "hires" in output
