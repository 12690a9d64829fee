"""The upscale queue, through Redis, S3 and a worker that serves only this queue."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw
from redis import Redis

from imagefleet_producer import ImageRef, InvalidRequest, Progress, UpscaleRequest
from localfleet.process import Process
from localfleet.servers import BUCKET, S3Keys
from tests.architectures import ARCHITECTURES, random_weights
from tests.fleet import TestFleet

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def upscalers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with an upscaler of every architecture."""
    models = tmp_path_factory.mktemp("models")
    (models / "upscalers").mkdir()
    for name in ARCHITECTURES:
        torch.save({"params": random_weights(name)}, models / "upscalers" / f"{name}.pth")
    return models


@pytest.fixture(scope="module")
def upscale_fleet(
    redis_server: Process,
    s3_server: Process,
    s3_keys: S3Keys,
    upscalers: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TestFleet]:
    folder = tmp_path_factory.mktemp("upscale_fleet")
    for server in (redis_server, s3_server):
        if not server.alive:
            server.start()
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    environment = {
        "IMAGEFLEET_STORAGE_URL": f"s3://{BUCKET}/{folder.name}",
        "IMAGEFLEET_S3_ENDPOINT_URL": s3_server.url,
        "IMAGEFLEET_REDIS_URL": redis_server.url,
        "IMAGEFLEET_MODELS_DIR": str(upscalers),
        "IMAGEFLEET_SPOOL_DIR": str(folder / "spool"),
        **s3_keys.environment(),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fleet = TestFleet(environment, folder)
    try:
        fleet.start_worker(device="cpu", queues="upscale")
        yield fleet
    finally:
        fleet.close()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def enlarged(
    upscale_fleet: TestFleet, images: Sequence[Image.Image | bytes], **fields: object
) -> list[Image.Image]:
    refs = [upscale_fleet.client.put_image(image) for image in images]
    job = upscale_fleet.client.upscale(UpscaleRequest.model_validate({"images": refs, **fields}))
    return job.images(TIMEOUT_S)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_enlarges_through_the_queue(upscale_fleet: TestFleet, name: str) -> None:
    scale = ARCHITECTURES[name][3]
    tiles = {"tile_size": 32, "tile_overlap": 8}
    [result] = enlarged(upscale_fleet, [noise(40, 25)], upscaler=name, scale=scale, **tiles)
    assert (result.mode, result.size) == ("RGB", (40 * scale, 25 * scale))


def test_an_exact_size_works_with_a_network_of_any_factor(upscale_fleet: TestFleet) -> None:
    for name in ("swinir-denoise", "swinir-lightweight", "swinir-classical", "esrgan"):
        [result] = enlarged(upscale_fleet, [noise(20, 30)], upscaler=name, width=101, height=77)
        assert result.size == (101, 77)


def test_each_image_of_a_request_has_its_result_in_order(upscale_fleet: TestFleet) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    images = [Image.new("RGB", (10 + 3 * i, 12), colour) for i, colour in enumerate(colours)]
    refs = tuple(upscale_fleet.client.put_image(image) for image in images)
    job = upscale_fleet.client.upscale(UpscaleRequest(images=refs, upscaler="nearest", scale=2))
    results = job.images(TIMEOUT_S)
    assert [result.size for result in results] == [(20, 24), (26, 24), (32, 24)]
    assert [result.getpixel((5, 5)) for result in results] == colours
    assert [image.width for image in job.result().images] == [20, 26, 32]


def test_progress_counts_all_images_and_never_goes_back(upscale_fleet: TestFleet) -> None:
    refs = tuple(upscale_fleet.client.put_image(noise(128, 128, seed)) for seed in range(6))
    request = UpscaleRequest(images=refs, upscaler="dat", scale=2, tile_size=16, tile_overlap=4)
    seen: list[Progress] = list(upscale_fleet.client.upscale(request).events(TIMEOUT_S))
    shares = [
        progress.step / progress.steps
        for progress in seen
        if progress.stage == "upscale" and progress.steps
    ]
    assert shares == sorted(shares)
    assert len(set(shares)) > 1


def test_the_error_names_the_image_and_nothing_is_upscaled(upscale_fleet: TestFleet) -> None:
    good = upscale_fleet.client.put_image(noise(8, 8))
    animated = encoded(noise(8, 8), "PNG", save_all=True, append_images=[noise(8, 8, 1)])
    bad = upscale_fleet.client.put_image(animated)
    for images, words in (
        ((good, bad), r"images\[1\]: .*2 frames"),
        ((good, good, ImageRef(key="inputs/none.png")), r"images\[2\]: .*inputs/none.png"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            upscale_fleet.client.upscale(UpscaleRequest(images=images, scale=2)).result(TIMEOUT_S)
    wide = upscale_fleet.client.put_image(noise(9000, 1))
    job = upscale_fleet.client.upscale(UpscaleRequest(images=(good, wide), height=8000, width=8000))
    with pytest.raises(InvalidRequest, match=r"images\[1\]: upscaled picture 72000000x8000"):
        job.result(TIMEOUT_S)


def test_two_upscalers_are_blended(upscale_fleet: TestFleet) -> None:
    image = noise(16, 16)
    fields = {"scale": 2, "upscaler": "nearest", "upscaler_2": "lanczos"}
    [first] = enlarged(upscale_fleet, [image], **fields, upscaler_2_visibility=0)
    [second] = enlarged(upscale_fleet, [image], **fields, upscaler_2_visibility=1)
    [blend] = enlarged(upscale_fleet, [image], **fields, upscaler_2_visibility=0.25)
    assert first.tobytes() == image.resize((32, 32), Image.Resampling.NEAREST).tobytes()
    assert second.tobytes() == image.resize((32, 32), Image.Resampling.LANCZOS).tobytes()
    assert blend.tobytes() == Image.blend(first, second, 0.25).tobytes()


def test_transparency_is_upscaled_too(upscale_fleet: TestFleet) -> None:
    layer = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(layer).ellipse((8, 8, 31, 31), fill=(200, 30, 30, 255))
    for file_format in ("png", "webp"):
        [result] = enlarged(
            upscale_fleet, [layer], upscaler="compact", scale=2, output_format=file_format
        )
        assert (result.mode, result.size) == ("RGBA", (80, 80))
        alpha = result.getchannel("A")
        expected = layer.getchannel("A").resize((80, 80), Image.Resampling.LANCZOS)
        assert alpha.tobytes() == expected.tobytes()
    [flat] = enlarged(upscale_fleet, [layer], upscaler="lanczos", scale=2, output_format="jpeg")
    corner = flat.getpixel((1, 1))
    assert isinstance(corner, tuple)
    assert min(corner) > 250


def test_sixteen_bits_reach_the_network(upscale_fleet: TestFleet) -> None:
    """Half a grey level of 8 bits, which a conversion would lose, changes the result."""
    sixteen = [
        encoded(Image.fromarray(np.full((8, 8), level, dtype=np.uint16)), "PNG")
        for level in (0x8000, 0x80FF)
    ]
    low, high = enlarged(upscale_fleet, sixteen, upscaler="compact", scale=4)
    assert low.mode == "RGB"
    assert low.tobytes() != high.tobytes()


def test_an_icc_profile_is_preserved(upscale_fleet: TestFleet) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(noise(8, 8), "PNG", icc_profile=profile)
    for file_format in ("png", "jpeg", "webp"):
        [result] = enlarged(upscale_fleet, [content], scale=2, output_format=file_format)
        assert result.info["icc_profile"] == profile
