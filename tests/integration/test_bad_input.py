"""Invalid requests and damaged files fail the job with a typed error; the worker keeps serving."""

import pickle
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from math import nan
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from redis import Redis

from imagefleet_producer import (
    CorruptFile,
    GenerateRequest,
    HiresPass,
    ImagefleetError,
    ImageRef,
    InvalidImage,
    InvalidRequest,
    Job,
    JobNotFound,
    PromptTooLong,
    UnknownCheckpoint,
    UnknownScheduler,
    UnknownUpscaler,
    UnsupportedSize,
    UpscalePass,
    UpscaleRequest,
)
from imagefleet_shared.broker import make_celery
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.routing import QUEUES, TASKS, job_key
from imagefleet_shared.samplers import OWN_TIMESTEPS
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import S3Store
from tests.fleet import TestFleet, wait_for

TIMEOUT_S = 30


class TouchesAFile:
    """A pickle of this creates the file if it is ever loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a file appears for every pickle that was loaded."""
    return tmp_path_factory.mktemp("traps")


@pytest.fixture(scope="module")
def fleet_models(demo_models: Path, traps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's models, with damaged and hostile files beside them."""
    root = tmp_path_factory.mktemp("hostile") / "models"
    shutil.copytree(demo_models, root)
    checkpoints, upscalers = root / "checkpoints", root / "upscalers"
    whole = (checkpoints / "demo.safetensors").read_bytes()
    (checkpoints / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (checkpoints / "garbage.safetensors").write_bytes(b"\x10" + bytes(7) + b"not a header at " * 9)
    (checkpoints / "empty.safetensors").write_bytes(b"")
    whole = (upscalers / "demo-x2.safetensors").read_bytes()
    (upscalers / "broken.safetensors").write_bytes(whole[:-100])
    (upscalers / "nonsense.safetensors").write_bytes(b"nothing to see here" * 50)
    for path in (checkpoints / "old.ckpt", upscalers / "old-upscaler.pth"):
        path.write_bytes(pickle.dumps(TouchesAFile(traps / path.stem)))
    return root


@pytest.fixture(autouse=True)
def _the_worker_keeps_serving(fleet: TestFleet) -> Iterator[None]:
    """Whatever the test does to the worker, the same process generates an image afterwards."""
    before = worker_pids(fleet)
    yield
    result = fleet.client.generate(GenerateRequest(prompt="good", num_inference_steps=1)).result(
        TIMEOUT_S
    )
    [worker] = fleet.client.workers()
    assert result.worker == worker.name
    assert len(before) == 1
    assert worker_pids(fleet) == before


def worker_pids(fleet: TestFleet) -> list[str]:
    """Pids of all worker processes that the supervisor has started."""
    return re.findall(r"started, pid (\d+)", fleet.workers[0].log.read_text())


def generate(fleet: TestFleet, **fields: object) -> Job:
    settings: dict[str, Any] = {"prompt": "bad", "num_inference_steps": 1, **fields}
    return fleet.client.generate(GenerateRequest(**settings))


def put(fleet: TestFleet, name: str, content: bytes) -> ImageRef:
    """Upload a file that the client would refuse."""
    storage = StorageSettings(
        storage_url=fleet.environment["IMAGEFLEET_STORAGE_URL"],
        s3_endpoint_url=fleet.environment["IMAGEFLEET_S3_ENDPOINT_URL"],
    )
    bucket, _, prefix = storage.storage_url.removeprefix("s3://").partition("/")
    S3Store(storage, bucket, prefix).put_new(name, content, "image/png")
    return ImageRef(key=name)


@pytest.fixture
def _s3_credentials(fleet: TestFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fleet.environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)


def assert_fails(job: Job, error: type[ImagefleetError], *words: object) -> None:
    """The job fails with exactly that error, whose message has these words."""
    with pytest.raises(error) as caught:
        job.result(TIMEOUT_S)
    assert type(caught.value) is error
    for word in words:
        assert str(word) in str(caught.value)


def png_bytes(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 100, "height": 64}, ("width", "100", "multiple of 8")),
        ({"width": 10_000, "height": 10_000}, ("width", "10000", "8192")),
        ({"width": 0, "height": 64}, ("width", "given 0", "64")),
        ({"width": 64}, ("both width and height", "64", "None")),
        ({"guidance_scale": nan}, ("guidance_scale", "nan")),
        ({"guidance_scale": float("inf")}, ("guidance_scale", "inf")),
        ({"num_inference_steps": 0}, ("num_inference_steps", "given 0", "1")),
        ({"num_inference_steps": 151}, ("num_inference_steps", "151", "150")),
        ({"seed": -1}, ("seed", "-1", "0")),
        ({"prompt": "a" * 20_001}, ("prompt", "20000")),
        ({"checkpoint": "../../etc/passwd"}, ("../../etc/passwd", "not a model name")),
        ({"checkpoint": "/etc/passwd"}, ("/etc/passwd", "not a model name")),
        ({"checkpoint": "C:\\model"}, ("model", "not a model name")),
        ({"checkpoint": "demo\0"}, ("not a model name",)),
        ({"strength": 0.5}, ("strength", "0.5", "image")),
        ({"output_format": "gif"}, ("output_format", "gif", "png", "jpeg", "webp")),
        ({"no_such_field": 1}, ("no_such_field", "not permitted")),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_an_invalid_request_is_refused_before_it_is_sent(
    fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    values: dict[str, Any] = {"prompt": "x", **fields}
    with pytest.raises(InvalidRequest) as refused:
        GenerateRequest(**values)
    for word in words:
        assert word in str(refused.value)


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    fields: dict[str, Any] = {"prompt": "x", "scheduler": "dreamy"}
    with pytest.raises(UnknownScheduler, match=r"'dreamy'; known: ddim, .*euler.*unipc"):
        GenerateRequest(**fields)


@pytest.mark.parametrize("scheduler", OWN_TIMESTEPS)
def test_a_sigma_schedule_that_a_scheduler_does_not_support_is_refused(scheduler: str) -> None:
    fields: dict[str, Any] = {"scheduler": scheduler, "sigma_schedule": "karras"}
    with pytest.raises(InvalidRequest, match=f"{scheduler}.*'automatic' only, given 'karras'"):
        GenerateRequest(prompt="x", **fields)


def test_requests_are_immutable() -> None:
    request = GenerateRequest(prompt="x")
    with pytest.raises(ValidationError, match="frozen"):
        request.width = 10_000


@pytest.mark.parametrize("key", ["/etc/passwd", "../secrets", "inputs/../../x", "a\0b", ""])
def test_a_key_that_leaves_the_store_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="key"):
        ImageRef(key=key)


def test_an_unknown_checkpoint_fails_with_the_known_ones(fleet: TestFleet) -> None:
    job = generate(fleet, checkpoint="mona-lisa")
    assert_fails(job, UnknownCheckpoint, "'mona-lisa'", "known: demo, demo-xl")


def test_an_unknown_upscaler_fails_with_the_known_ones(fleet: TestFleet) -> None:
    upscale = UpscalePass(scale=2, upscaler="mona-lisa")
    assert_fails(
        generate(fleet, upscale=upscale), UnknownUpscaler, "'mona-lisa'", "demo-x2, demo-x4"
    )
    hires = HiresPass(scale=1.5, upscaler="mona-lisa")
    assert_fails(generate(fleet, hires=hires), UnknownUpscaler, "'mona-lisa'", "demo-x2, demo-x4")
    image = fleet.client.put_image(png_bytes(64, 64))
    job = fleet.client.upscale(UpscaleRequest(images=(image,), scale=2, upscaler="mona-lisa"))
    assert_fails(job, UnknownUpscaler, "'mona-lisa'", "demo-x2, demo-x4")


def test_more_pixels_than_the_worker_allows_fail_with_its_limit(fleet: TestFleet) -> None:
    limit = 2048 * 2048
    assert_fails(generate(fleet, width=4096, height=4096), UnsupportedSize, "4096x4096", limit)
    hires = HiresPass(scale=8)
    assert_fails(
        generate(fleet, width=512, height=512, hires=hires), UnsupportedSize, "4096x4096", limit
    )
    upscale = UpscalePass(scale=8)
    job = generate(fleet, width=2048, height=2048, upscale=upscale)
    assert_fails(job, UnsupportedSize, "16384x16384", 8192 * 8192)


def test_a_prompt_of_too_many_tokens_fails_with_the_limit(fleet: TestFleet) -> None:
    assert_fails(generate(fleet, prompt="fox " * 751), PromptTooLong, "751", "750")
    assert_fails(generate(fleet, negative_prompt="fox " * 1000), PromptTooLong, "1000", "750")
    generate(fleet, prompt="fox " * 750).result(TIMEOUT_S)


def test_files_that_are_not_allowed_images_are_refused_by_the_client(
    fleet: TestFleet, tmp_path: Path
) -> None:
    gif = BytesIO()
    Image.new("RGB", (64, 64)).save(gif, "GIF")
    text = tmp_path / "text.png"
    text.write_text("not an image")
    for bad in (gif.getvalue(), b"", text):
        with pytest.raises(InvalidImage, match="allowed are PNG, JPEG and WebP"):
            fleet.client.put_image(bad)


@pytest.mark.usefixtures("_s3_credentials")
def test_an_image_in_the_store_that_cannot_be_decoded_fails(fleet: TestFleet) -> None:
    whole = png_bytes(256, 256)
    gif = BytesIO()
    Image.new("RGB", (64, 64)).save(gif, "GIF")
    files = {
        "truncated.png": (whole[: len(whole) * 2 // 3], "256x256"),
        "headless.png": (whole[:20], "header"),
        "text.png": (b"not an image at all", "PNG, JPEG and WebP"),
        "animation.gif": (gif.getvalue(), "PNG, JPEG and WebP"),
        "empty.png": (b"", "PNG, JPEG and WebP"),
    }
    for name, (content, word) in files.items():
        image = put(fleet, f"inputs/{name}", content)
        assert_fails(generate(fleet, image=image, num_inference_steps=2), InvalidImage, word)
        assert_fails(
            fleet.client.upscale(UpscaleRequest(images=(image,), scale=2)), InvalidImage, word
        )


@pytest.mark.usefixtures("_s3_credentials")
def test_a_decompression_bomb_fails_before_it_is_decoded(fleet: TestFleet) -> None:
    content = bomb(30_000)
    assert len(content) < 1000
    image = put(fleet, "inputs/bomb.png", content)
    for job in (
        generate(fleet, image=image, num_inference_steps=2),
        fleet.client.upscale(UpscaleRequest(images=(image,), scale=2)),
    ):
        assert_fails(job, UnsupportedSize, "30000x30000", 8192 * 8192)


def test_a_decompression_bomb_is_not_decoded_by_the_client_either(fleet: TestFleet) -> None:
    image = fleet.client.put_image(bomb(30_000))
    assert_fails(generate(fleet, image=image), UnsupportedSize, "30000x30000")


def test_an_image_that_is_not_in_the_store_fails_with_its_key(fleet: TestFleet) -> None:
    image = ImageRef(key="inputs/gone.png")
    job = generate(fleet, image=image, num_inference_steps=2)
    assert_fails(job, InvalidRequest, "'inputs/gone.png'", "not in the store")
    assert_fails(
        fleet.client.upscale(UpscaleRequest(images=(image,), scale=2)),
        InvalidRequest,
        "inputs/gone.png",
    )


@pytest.mark.parametrize(
    ("checkpoint", "word"),
    [
        ("truncated", "where its header promises"),
        ("garbage", "damaged header"),
        ("empty", "not a .safetensors file"),
    ],
)
def test_a_damaged_checkpoint_fails_with_the_reason(
    fleet: TestFleet, checkpoint: str, word: str
) -> None:
    assert_fails(
        generate(fleet, checkpoint=checkpoint), CorruptFile, f"{checkpoint}.safetensors", word
    )


@pytest.mark.parametrize("upscaler", ["broken", "nonsense"])
def test_a_damaged_upscaler_fails_with_its_name(fleet: TestFleet, upscaler: str) -> None:
    image = fleet.client.put_image(png_bytes(64, 64))
    job = fleet.client.upscale(UpscaleRequest(images=(image,), scale=2, upscaler=upscaler))
    assert_fails(job, CorruptFile, f"{upscaler}.safetensors")
    hires = HiresPass(scale=1.5, upscaler=upscaler)
    assert_fails(generate(fleet, hires=hires), CorruptFile, f"{upscaler}.safetensors")


def test_a_pickle_is_not_loaded_and_the_message_says_how_to_convert_it(
    fleet: TestFleet, traps: Path
) -> None:
    job = generate(fleet, checkpoint="old")
    assert_fails(job, CorruptFile, "old.ckpt is a pickle", "can run code", "save_file(tensors")
    image = fleet.client.put_image(png_bytes(64, 64))
    job = fleet.client.upscale(UpscaleRequest(images=(image,), scale=2, upscaler="old-upscaler"))
    assert_fails(job, CorruptFile, "old-upscaler.pth")
    assert not list(traps.iterdir())


def test_loading_the_pickle_would_have_created_the_file(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(TouchesAFile(tmp_path / "loaded")))
    assert (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ('{"prompt": "x", "width": 9999999, "height": 64}', "width"),
        ('{"prompt": "x", "checkpoint": "../../etc/passwd"}', "not a model name"),
        ('{"prompt": "x", "no_such_field": 1}', "no_such_field"),
        ('{"prompt": "x", "guidance_scale": NaN}', "GenerateRequest"),
        ("{", "GenerateRequest"),
        ("[]", "GenerateRequest"),
    ],
)
def test_a_record_that_was_tampered_with_fails(fleet: TestFleet, record: str, word: str) -> None:
    """The worker validates records again: whoever can write to Redis need not be an app."""
    with Redis.from_url(fleet.broker.redis_url, decode_responses=True) as redis:
        ledger = Ledger(redis, record_ttl_s=60)
        request = GenerateRequest(prompt="x")
        wakeup = ledger.submit("tampered", "generate", request, "normal", None)
        redis.hset(job_key("tampered"), "request", record)
        send(fleet, [wakeup.job_id])
        assert_fails(fleet.client.job("tampered"), InvalidRequest, word)
        redis.delete(job_key("tampered"))


def test_a_message_for_a_job_that_does_not_exist_is_consumed(fleet: TestFleet) -> None:
    send(fleet, ["no-such-job"])
    wait_for(lambda: waiting(fleet) == 0, TIMEOUT_S, "the message is consumed")
    with pytest.raises(JobNotFound):
        fleet.client.job("no-such-job").status()


@pytest.mark.parametrize(
    "arguments", [[], [1, 2, 3], [None], [{"a": 1}], ["\0" * 5000], [["nested"]], [7]], ids=repr
)
def test_a_message_with_garbage_as_arguments_is_consumed(
    fleet: TestFleet, arguments: list[object]
) -> None:
    send(fleet, arguments)
    wait_for(lambda: waiting(fleet) == 0, TIMEOUT_S, "the message is consumed")


def test_a_message_for_an_unknown_task_is_consumed(fleet: TestFleet) -> None:
    with make_celery(fleet.broker) as celery:
        celery.send_task("imagefleet.no_such_task", args=["x"], queue=QUEUES["generate"])
    wait_for(lambda: waiting(fleet) == 0, TIMEOUT_S, "the message is consumed")


def send(fleet: TestFleet, arguments: list[object]) -> None:
    with make_celery(fleet.broker) as celery:
        celery.send_task(TASKS["generate"], args=arguments, queue=QUEUES["generate"])


def waiting(fleet: TestFleet) -> int:
    """Messages that were published or delivered and not acknowledged."""
    with Redis.from_url(fleet.broker.redis_url) as redis:
        lists = sum(int(redis.llen(key)) for key in redis.scan_iter(f"{QUEUES['generate']}*"))
        return lists + int(redis.hlen("unacked"))
