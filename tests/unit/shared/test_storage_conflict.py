"""Concurrent writes of one key, against an S3 API with scripted responses."""

from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from imagefleet_shared.errors import StorageUnavailable
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import StoredObject, open_store

CONFLICT = (409, "ConditionalRequestConflict")
PRESENT = (412, "PreconditionFailed")
GONE = (404, "NoSuchKey")
OK = (200, "")

Response = tuple[int, str]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@contextmanager
def s3_api(*responses: Response) -> Generator[tuple[str, list[str]]]:
    """An S3 API: its URL, and the methods called; conflicts after the last response."""
    left, methods = list(responses), list[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # else botocore waits a second for leave to send the body

        def respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            methods.append(self.command)
            status, code = left.pop(0) if left else CONFLICT
            body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
            self.send_response(status)
            self.send_header("Connection", "close")
            self.send_header("x-amz-meta-sha256", "theirs")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_HEAD = respond  # noqa: N815 — the names are http.server's

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", methods
        finally:
            server.shutdown()
            thread.join()


def put(url: str) -> StoredObject:
    store = open_store(StorageSettings(storage_url="s3://bucket", s3_endpoint_url=url))
    return store.put_new("key", b"ours", "text/plain")


def test_a_write_that_conflicts_with_another_is_retried() -> None:
    """S3 responds with 409 while another write is in flight; it was taken for "present"."""
    with s3_api(CONFLICT, CONFLICT, OK) as (url, methods):
        assert put(url).sha256 == sha256(b"ours").hexdigest()
    assert methods == ["PUT"] * 3


def test_a_write_that_lost_returns_the_other_object() -> None:
    with s3_api(CONFLICT, PRESENT, OK) as (url, methods):
        assert put(url).sha256 == "theirs"
    assert methods == ["PUT", "PUT", "HEAD"]


def test_an_object_that_was_present_and_is_gone_is_written() -> None:
    with s3_api(PRESENT, GONE, OK) as (url, methods):
        assert put(url).sha256 == sha256(b"ours").hexdigest()
    assert methods == ["PUT", "HEAD", "PUT"]


def test_a_conflict_that_does_not_end_is_a_storage_error() -> None:
    with (
        s3_api() as (url, _),
        pytest.raises(StorageUnavailable, match="ConditionalRequestConflict"),
    ):
        put(url)
