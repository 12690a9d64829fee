"""Settings of apps and workers: read from the environment, validated, without secrets in reprs."""

import pytest
from pydantic import ValidationError

from imagefleet_shared.broker import connect, make_celery
from imagefleet_shared.errors import ImagefleetError
from imagefleet_shared.settings import BrokerSettings, StorageSettings
from imagefleet_shared.storage import open_store

SECRET = "hunter2"
URL = f"redis://fox:{SECRET}@127.0.0.1:1/0"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEFLEET_REDIS_URL", URL)
    monkeypatch.setenv("IMAGEFLEET_STORAGE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("IMAGEFLEET_S3_PATH_STYLE", "false")
    assert BrokerSettings().redis_url == URL
    assert StorageSettings().storage_url == "s3://bucket/prefix"
    assert StorageSettings().s3_path_style is False


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEFLEET_REDIS_URL", URL)
    assert BrokerSettings(redis_url="redis://other/0").redis_url == "redis://other/0"


def test_the_password_of_redis_is_not_in_the_repr() -> None:
    settings = BrokerSettings(redis_url=URL)
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)


def test_the_password_of_redis_is_not_in_the_repr_of_connections() -> None:
    settings = BrokerSettings(redis_url=URL)
    with connect(settings, retries=0) as redis, make_celery(settings) as celery:
        assert SECRET not in repr(celery)
        assert SECRET not in str(celery.connection_for_write())
        assert SECRET not in str(redis)


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BrokerSettings().redis_url = "redis://other/0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RECORD_TTL_S", "59"),
        ("SOCKET_TIMEOUT_S", "0"),
        ("CONNECT_TIMEOUT_S", "-1"),
        ("SOCKET_TIMEOUT_S", "soon"),
    ],
)
def test_invalid_values_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGEFLEET_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        BrokerSettings()


@pytest.mark.parametrize(
    "url", ["", "/var/lib", "http://bucket", "s3://", "file://", "file:///", "file://host/folder"]
)
def test_a_storage_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ImagefleetError, match=r"s3://bucket\[/prefix\] or file:///directory"):
        open_store(StorageSettings(storage_url=url))
