"""The contract of the object store, tested on every implementation."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from imagefleet_shared.errors import ImagefleetError, StorageUnavailable
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import ObjectStore, open_store

Fixture = Callable[[str], object]


@pytest.fixture(params=["file", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    if request.param == "file":
        return open_store(StorageSettings(storage_url=(tmp_path / "store").as_uri()))
    environment: dict[str, str] = request.getfixturevalue("s3_settings_env")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return open_store(StorageSettings())


def test_a_stored_object_is_found(store: ObjectStore) -> None:
    stored = store.put_new("2026/a.png", b"content", "image/png")
    assert store.find("2026/a.png") == b"content"
    assert (stored.key, stored.size_bytes) == ("2026/a.png", 7)
    assert stored.sha256 == sha256(b"content").hexdigest()
    assert stored.url.endswith("2026/a.png")


def test_an_absent_key_is_none(store: ObjectStore) -> None:
    assert store.find("nothing") is None
    assert store.find("2026") is None


@pytest.mark.parametrize("key", ["a/./c", "a/b/c", "k" * 256, "k/" * 600 + "k", "k" * 5000])
def test_a_key_that_the_store_rejects_is_none(store: ObjectStore, key: str) -> None:
    """It was taken for an outage: a worker waited ten minutes for the store to come back."""
    store.put_new("a/b", b"content", "image/png")
    assert store.find(key) is None


def test_the_first_writer_wins_and_the_second_gets_the_stored_object(store: ObjectStore) -> None:
    first = store.put_new("a/job.json", b"first", "application/json")
    second = store.put_new("a/job.json", b"second writer", "application/json")
    assert second == first
    assert store.find("a/job.json") == b"first"


def test_of_many_concurrent_writers_one_wins(store: ObjectStore) -> None:
    def put(writer: int) -> str:
        return store.put_new("a/race", b"%d" % writer * 1000, "text/plain").sha256

    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(put, range(8)))
    assert digests == {sha256(store.find("a/race") or b"").hexdigest()}


def test_a_presigned_url_reads_the_object(store: ObjectStore) -> None:
    store.put_new("a.txt", b"hello", "text/plain")
    with urlopen(store.presigned_url("a.txt", 60)) as response:
        assert response.read() == b"hello"


def test_without_a_signature_the_object_cannot_be_read(
    s3_settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_settings_env.items():
        monkeypatch.setenv(name, value)
    store = open_store(StorageSettings())
    store.put_new("a.txt", b"hello", "text/plain")
    with pytest.raises(HTTPError) as refused:
        urlopen(store.presigned_url("a.txt", 60).partition("?")[0])
    assert refused.value.code == 403
    refused.value.close()


def test_wrong_credentials_are_a_storage_error(
    s3_settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_settings_env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(StorageSettings())
    with pytest.raises(StorageUnavailable):
        store.put_new("a", b"", "text/plain")
    with pytest.raises(StorageUnavailable):
        store.find("a")


def test_a_key_cannot_leave_a_directory(tmp_path: Path) -> None:
    store = open_store(StorageSettings(storage_url=(tmp_path / "store").as_uri()))
    with pytest.raises(StorageUnavailable, match="leaves the store"):
        store.find("../secret")


@pytest.mark.parametrize("url", ["", "s3://", "file:///", "http://host/x", "/tmp", "file://h/x"])
def test_an_invalid_url_is_refused_with_the_valid_forms(url: str) -> None:
    with pytest.raises(ImagefleetError, match="s3://bucket"):
        open_store(StorageSettings(storage_url=url))
