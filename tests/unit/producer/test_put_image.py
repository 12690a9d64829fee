"""Uploading input images, by format and by mode."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageOps

from imagefleet_producer import BrokerSettings, Client, InvalidImage, StorageSettings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client of a store in a folder; Redis is not used."""
    storage = StorageSettings(storage_url=(tmp_path / "store").as_uri())
    with Client(BrokerSettings(), storage) as client:
        yield client


def file(kind: str, *frames: Image.Image) -> bytes:
    content = BytesIO()
    options = {"save_all": True, "append_images": frames} if frames else {}
    Image.new("RGB", (16, 8), "teal").save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_is_stored_unchanged_under_its_format(client: Client, kind: str) -> None:
    content = file(kind.upper())
    image = client.put_image(content)
    assert image.key.endswith(f".{kind}")
    assert client.stored(image.key) == content


def test_a_jpeg_of_several_frames_is_a_jpeg(client: Client) -> None:
    """Phones write them, Pillow calls them MPO, and the client raised KeyError('mpo')."""
    content = file("MPO", Image.new("RGB", (4, 2)))
    image = client.put_image(content)
    assert image.key.endswith(".jpeg")
    assert client.stored(image.key) == content


def test_an_image_above_pillows_limit_is_uploaded(client: Client) -> None:
    """Only its header is read: the limit is the worker's setting, not Pillow's."""
    content = BytesIO()
    Image.new("1", (20_000, 10_000)).save(content, "PNG")
    assert client.put_image(content.getvalue()).key.endswith(".png")


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", file("GIF"), file("PNG")[:20]],
    ids=["empty", "text", "gif", "cut off"],
)
def test_other_files_are_refused(client: Client, content: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"allowed are PNG, JPEG and WebP|damaged PNG header"):
        client.put_image(content)


def stored(client: Client, image: Image.Image) -> Image.Image:
    """The image in the store after the upload."""
    return Image.open(BytesIO(client.stored(client.put_image(image).key) or b""))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_of_png_are_stored_unchanged(client: Client, mode: str) -> None:
    image = Image.linear_gradient("L").convert(mode)
    back = stored(client, image)
    assert (back.mode, back.tobytes()) == (image.mode, image.tobytes())


@pytest.mark.parametrize(
    ("mode", "stored_mode"),
    [("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB"), ("PA", "RGBA"), ("RGBa", "RGBA")],
)
def test_other_modes_are_stored_as_the_worker_reads_them(
    client: Client, mode: str, stored_mode: str
) -> None:
    """Pillow's "cannot write mode" was raised, as an error about a path."""
    image = Image.new(stored_mode, (4, 4), "teal").convert(mode)
    image.info["icc_profile"] = b"of the other colours"
    back = stored(client, image)
    assert back.mode == stored_mode
    assert back.tobytes() == image.convert(stored_mode).tobytes()
    assert "icc_profile" not in back.info


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_without_a_fixed_range_is_refused(client: Client, mode: str) -> None:
    with pytest.raises(InvalidImage, match=rf"image \({mode}, 4x2\).*convert it"):
        client.put_image(Image.new(mode, (4, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_stored_upright(client: Client, orientation: int) -> None:
    """A phone's photo was stored in sensor orientation, although its file is decoded upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = BytesIO()
    Image.effect_noise((24, 16), 50).save(content, "PNG", exif=exif)
    file = Image.open(content)
    back = stored(client, file)
    assert back.tobytes() == ImageOps.exif_transpose(file).tobytes()
    assert back.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_an_image_that_cannot_be_decoded_is_refused(client: Client) -> None:
    content = BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "PNG")
    with pytest.raises(InvalidImage, match=r"image \(L, 64x64\) cannot be read"):
        client.put_image(Image.open(BytesIO(content.getvalue()[:1000])))
