"""Writes that meet another's on their way, against an S3 API that answers as it is told."""

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
DONE = (200, "")

Answer = tuple[int, str]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@contextmanager
def answering(*answers: Answer) -> Generator[tuple[str, list[str]]]:
    """An S3 API: its address, and the methods it was asked by; after the last answer: conflicts."""
    left, asked = list(answers), list[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # else botocore waits a second for leave to send the body

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.command)
            status, code = left.pop(0) if left else CONFLICT
            body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
            self.send_response(status)
            self.send_header("Connection", "close")
            self.send_header("x-amz-meta-sha256", "theirs")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_HEAD = answer  # noqa: N815 — the names are http.server's

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def put(address: str) -> StoredObject:
    store = open_store(StorageSettings(storage_url="s3://bucket", s3_endpoint_url=address))
    return store.put_new("key", b"ours", "text/plain")


def test_a_write_that_meets_another_on_its_way_is_tried_again() -> None:
    """S3 answers 409 while another write is in flight; it was taken for "present"."""
    with answering(CONFLICT, CONFLICT, DONE) as (address, asked):
        assert put(address).sha256 == sha256(b"ours").hexdigest()
    assert asked == ["PUT"] * 3


def test_a_write_that_lost_to_the_other_is_told_what_lies_there() -> None:
    with answering(CONFLICT, PRESENT, DONE) as (address, asked):
        assert put(address).sha256 == "theirs"
    assert asked == ["PUT", "PUT", "HEAD"]


def test_what_was_present_and_is_gone_when_looked_at_is_written() -> None:
    with answering(PRESENT, GONE, DONE) as (address, asked):
        assert put(address).sha256 == sha256(b"ours").hexdigest()
    assert asked == ["PUT", "HEAD", "PUT"]


def test_a_conflict_that_does_not_end_is_a_storage_error() -> None:
    with (
        answering() as (address, _),
        pytest.raises(StorageUnavailable, match="ConditionalRequestConflict"),
    ):
        put(address)
