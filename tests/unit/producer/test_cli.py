"""The command line without a fleet: help, invalid requests, and an unreachable Redis."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from imagefleet_producer.cli import app
from localfleet.ports import free_port

COMMANDS = ["generate", "upscale", "status", "cancel", "models", "demo"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """The command line with a Redis that is down and a store in a folder."""
    monkeypatch.setenv("IMAGEFLEET_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("IMAGEFLEET_STORAGE_URL", (tmp_path / "store").as_uri())
    monkeypatch.chdir(tmp_path)
    return CliRunner()


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(path)
    return str(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: CliRunner, command: str) -> None:
    result = cli.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert "--help" in result.output


def test_help_lists_all_commands(cli: CliRunner) -> None:
    result = cli.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a fox"],
        ["generate", "a fox", "--no-wait", "--json"],
        ["status", "some-id"],
        ["status", "some-id", "--json"],
        ["cancel", "some-id"],
        ["models"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_a_redis_that_is_down_is_reported_within_two_seconds(
    cli: CliRunner, arguments: list[str]
) -> None:
    started = time.monotonic()
    result = cli.invoke(app, arguments)
    assert time.monotonic() - started < 2
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("BrokerUnavailable: Redis cannot be reached")
    assert "Traceback" not in result.output


def test_an_upscale_with_redis_down_fails_too(cli: CliRunner, image_file: str) -> None:
    result = cli.invoke(app, ["upscale", image_file])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("BrokerUnavailable")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--width", "100", "--height", "64"], ["width", "100", "multiple of 8"]),
        (["--width", "64"], ["both width and height"]),
        (["--steps", "0"], ["num_inference_steps", "given 0"]),
        (["--guidance", "nan"], ["guidance_scale", "nan"]),
        (["--checkpoint", "../../etc/passwd"], ["../../etc/passwd", "not a model name"]),
        (["--scheduler", "dreamy"], ["dreamy", "euler"]),
        (["--scheduler", "ddim", "--sigmas", "karras"], ["ddim", "karras"]),
        (["--strength", "0.5"], ["strength", "image"]),
        (["--hires", "0.5"], ["scale", "0.5"]),
        (["--upscale", "9"], ["scale", "9"]),
        (["--format", "gif"], ["gif", "png"]),
        (["--no-such-option"], ["no-such-option"]),
        (["--hires-steps", "3"], ["scale", "width"]),
        (["--mask-blur", "3"], ["mask_image"]),
        (["--seed-resize-from", "64"], ["seed_resize_from"]),
        (["--preview", "preview.xyz"], ["preview.xyz", ".png"]),
        (["--from", "image.gone"], ["image.gone"]),
        (["--time-limit", "0"], ["time_limit_s", "given 0"]),
        (["--time-limit", "nan"], ["time_limit_s", "given nan"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_invalid_request_exits_with_2_and_its_reason(
    cli: CliRunner, options: list[str], words: list[str]
) -> None:
    result = cli.invoke(app, ["generate", "a fox", *options])
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_neither_prompt_nor_image_exits_with_2(cli: CliRunner, image_file: str) -> None:
    result = cli.invoke(app, ["generate"])
    assert result.exit_code == 2
    assert result.stderr.startswith("InvalidRequest: give a prompt")
    result = cli.invoke(app, ["generate", "--from", image_file])
    assert result.exit_code == 2
    assert "carries no text" in result.stderr


def test_schedulers_are_listed_without_a_fleet(cli: CliRunner) -> None:
    result = cli.invoke(app, ["models", "--schedulers"])
    assert result.exit_code == 0
    for word in ("dpmpp_2m_sde", "DPM++ 2M SDE", "sgm_uniform", "SGM Uniform"):
        assert word in result.stdout
    listed = json.loads(cli.invoke(app, ["models", "--schedulers", "--json"]).stdout)
    by_name = {row["name"]: row for row in listed["schedulers"]}
    assert by_name["ddim"]["sigma_schedules"] == ["automatic"]
    assert by_name["euler_ancestral"]["label"] == "Euler a"


@pytest.mark.parametrize("command", ["upscale", "generate"])
def test_a_file_that_is_not_an_image_exits_with_2(
    cli: CliRunner, tmp_path: Path, command: str
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    arguments = {"upscale": ["text.png"], "generate": ["fox", "--image", "text.png"]}[command]
    result = cli.invoke(app, [command, *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("InvalidImage: input image of 12 bytes starts with")


@pytest.mark.parametrize(
    "arguments", [["upscale", "gone.png"], ["generate", "fox", "--image", "gone.png"]]
)
def test_a_missing_file_exits_with_2_and_no_traceback(cli: CliRunner, arguments: list[str]) -> None:
    result = cli.invoke(app, arguments)
    assert result.exit_code == 2
    assert "gone.png" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STORAGE_URL", "ftp://somewhere", "storage_url must be"),
        ("REDIS_URL", "foo", "redis_url must be"),
        ("RECORD_TTL_S", "5", "record_ttl_s: Input should be"),
    ],
)
def test_invalid_settings_exit_with_a_line_and_no_traceback(
    cli: CliRunner, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """Only the store's URL did; the others exited with a traceback and 1, "the fleet failed"."""
    monkeypatch.setenv(f"IMAGEFLEET_{name}", value)
    result = cli.invoke(app, ["models"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("settings: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_invalid_redis_url_is_reported_without_its_password(
    cli: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEFLEET_REDIS_URL", "redis://fox:hunter2/x@127.0.0.1:6379/0")
    result = cli.invoke(app, ["models"])
    assert "redis_url must be redis://" in result.stderr
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--out", "image.png"], "image.png"),
        (["--out", "image.png/deeper"], "image.png"),
        (["--preview", "preview.png", "--no-wait"], "--no-wait"),
        (["--preview", "gone/preview.png"], "gone"),
        (["--preview", "folder.png"], "folder.png"),
        (["--preview", "image.png/preview.png"], "image.png"),
        (["--preview", "preview.xbm"], "preview.xbm"),
    ],
)
@pytest.mark.usefixtures("image_file")
def test_output_that_cannot_be_saved_is_refused_before_anything_is_enqueued(
    cli: CliRunner, tmp_path: Path, options: list[str], word: str
) -> None:
    """The image was rendered first and then lost in a traceback, or the job ran without a watcher.

    Redis is down: enqueueing would exit with 1.
    """
    (tmp_path / "folder.png").mkdir()
    result = cli.invoke(app, ["generate", "a fox", *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert isinstance(result.exception, SystemExit)
    assert word in result.stderr


@pytest.mark.parametrize("command", [["upscale", "image.png"], ["demo"]], ids=" ".join)
@pytest.mark.usefixtures("image_file")
def test_every_command_that_saves_images_refuses_such_a_folder(
    cli: CliRunner, command: list[str]
) -> None:
    result = cli.invoke(app, [*command, "--out", "image.png/deeper"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "image.png" in result.stderr


def test_a_job_that_is_not_waited_for_needs_no_folder(cli: CliRunner, tmp_path: Path) -> None:
    assert cli.invoke(app, ["generate", "a fox", "--no-wait"]).exit_code == 1
    assert not (tmp_path / "out").exists()
