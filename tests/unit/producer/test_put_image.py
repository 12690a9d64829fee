"""Pictures that an app puts into the store, by their files' formats."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from imagefleet_producer import BrokerSettings, Client, InvalidImage, StorageSettings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client of a store in a folder; Redis is not asked."""
    storage = StorageSettings(storage_url=(tmp_path / "store").as_uri())
    with Client(BrokerSettings(), storage) as client:
        yield client


def file(kind: str, *more: Image.Image) -> bytes:
    content = BytesIO()
    options = {"save_all": True, "append_images": more} if more else {}
    Image.new("RGB", (16, 8), "teal").save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_is_stored_as_it_is_under_its_format(client: Client, kind: str) -> None:
    content = file(kind.upper())
    image = client.put_image(content)
    assert image.key.endswith(f".{kind}")
    assert client.stored(image.key) == content


def test_a_phones_jpeg_of_several_pictures_is_a_jpeg(client: Client) -> None:
    """Pillow calls it MPO, and the client raised KeyError('mpo')."""
    content = file("MPO", Image.new("RGB", (4, 2)))
    image = client.put_image(content)
    assert image.key.endswith(".jpeg")
    assert client.stored(image.key) == content


def test_a_picture_larger_than_pillow_likes_is_for_the_worker_to_refuse(client: Client) -> None:
    """Its header alone is read: the limit is the fleet's setting, not Pillow's."""
    content = BytesIO()
    Image.new("1", (20_000, 10_000)).save(content, "PNG")
    assert client.put_image(content.getvalue()).key.endswith(".png")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", file("GIF"), file("PNG")[:20]],
    ids=["empty", "text", "gif", "cut off"],
)
def test_other_files_are_refused(client: Client, content: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"allowed are PNG, JPEG and WebP|damaged PNG header"):
        client.put_image(content)
