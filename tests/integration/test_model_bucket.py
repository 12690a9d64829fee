"""Models of a bucket: a real S3 server, and more than one process that wants the same file."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

import pytest
import torch
from prometheus_client import REGISTRY
from safetensors.torch import save

from imagefleet_shared.errors import (
    CorruptFile,
    FileUnavailable,
    JobCanceled,
    StorageUnavailable,
    UnknownCheckpoint,
    UnknownLora,
    UnknownUpscaler,
    WorkerFailure,
)
from imagefleet_shared.requests import GenerateRequest
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.status import Stage
from imagefleet_shared.storage import FileStore, s3_client
from imagefleet_worker.catalog.bucket import PART_BYTES, ModelBucket
from imagefleet_worker.catalog.disk_cache import EVICTION_GRACE_S, DiskCache
from imagefleet_worker.catalog.listing import NamedKind
from imagefleet_worker.catalog.remote import RemoteModels
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings
from localfleet.process import Process
from localfleet.servers import BUCKET

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SD1 = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
)
PLENTY = 2**40
CHECKPOINT = save({key: torch.zeros(1, 4, 1, 1) for key in SD1})
EMBEDDING = save({"emb_params": torch.zeros(1, 768)})


class Shelf:
    """A bucket's prefix that a test fills."""

    def __init__(self, s3: "S3Client", prefix: str) -> None:
        self._s3, self._prefix = s3, prefix
        self.url = f"s3://{BUCKET}/{prefix}"

    def put(self, path: str, content: bytes, **metadata: str) -> None:
        self._s3.put_object(
            Bucket=BUCKET, Key=f"{self._prefix}/{path}", Body=content, Metadata=metadata
        )

    def put_secret(self, path: str, content: bytes) -> None:
        """An object that only who knows its key can read."""
        self._s3.put_object(
            Bucket=BUCKET,
            Key=f"{self._prefix}/{path}",
            Body=content,
            SSECustomerAlgorithm="AES256",
            SSECustomerKey=os.urandom(32),
        )

    def delete(self, path: str) -> None:
        self._s3.delete_object(Bucket=BUCKET, Key=f"{self._prefix}/{path}")


def open_store(url: str, folder: Path, budget_bytes: int = PLENTY) -> ModelStore:
    bucket = ModelBucket(StorageSettings(), url)
    return ModelStore(folder / "models", RemoteModels(bucket, DiskCache(folder, budget_bytes)))


def fetch_in_process(url: str, folder: Path, tell_fetches: Callable[[float | None], None]) -> None:
    store = open_store(url, folder)
    path = store.fetch(store.find("upscaler", "large"))
    assert path.stat().st_size == 3 * PART_BYTES
    tell_fetches(REGISTRY.get_sample_value("imagefleet_model_fetches_total"))


def keep_in_process(url: str, folder: Path, keeps: Event, done: Event) -> None:
    store = open_store(url, folder, budget_bytes=1)
    with store.pinned([store.find("upscaler", "kept")]):
        keeps.set()
        assert done.wait(60)
        assert store.local_path("upscaler", "kept").read_bytes() == b"weights"


@pytest.fixture
def shelf(
    s3_settings_env: dict[str, str], unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Shelf:
    for name, value in s3_settings_env.items():
        monkeypatch.setenv(name, value)
    settings = StorageSettings()
    return Shelf(s3_client(settings, settings.s3_endpoint_url), unique_prefix)


@pytest.fixture
def store(shelf: Shelf, tmp_path: Path) -> ModelStore:
    return open_store(shelf.url, tmp_path)


def fetched(folder: Path) -> list[str]:
    """Names of the whole files in a cache."""
    return sorted(
        path.name
        for path in (folder / "versions").glob("*/*")
        if path.is_file() and not path.name.startswith(".")
    )


def grown_old(folder: Path) -> None:
    """Make every version in a cache look unused for long, each longer than the next."""
    for age, version in enumerate((folder / "versions").iterdir(), start=1):
        used_s = time() - age - 2 * EVICTION_GRACE_S
        os.utime(version, times=(used_s, used_s))


def test_a_bucket_is_listed_by_a1111s_folders_without_fetching_checkpoints(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    shelf.put("Stable-diffusion/anime/theirs.safetensors", CHECKPOINT)
    shelf.put("checkpoints/notes.txt", b"no model")
    shelf.put("checkpoints/.hidden.safetensors", CHECKPOINT)
    shelf.put("checkpoints/old.ckpt", b"PK\x03\x04 and so on")
    shelf.put("ESRGAN/up.pth", b"weights")
    shelf.put("else/other.safetensors", CHECKPOINT)

    listed = [(file.name, file.family) for file in store.list_models("checkpoint")]
    assert listed == [("theirs", "sd1")]
    assert [file.name for file in store.list_models("upscaler")] == ["up"]
    with pytest.raises(CorruptFile, match=r"(?s)old\.ckpt is a pickle.*save_file"):
        store.find("checkpoint", "old")
    assert fetched(tmp_path) == []


def test_a_header_longer_than_what_is_read_first_is_read_whole(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    tensors = {key: torch.zeros(1, 4, 1, 1) for key in SD1}
    content = save(tensors, metadata={"notes": "long " * 50_000})
    shelf.put("checkpoints/a.safetensors", content)

    assert store.find("checkpoint", "a").family == "sd1"
    assert fetched(tmp_path) == []


def test_a_file_is_fetched_whole_and_its_hash_is_known(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    content = os.urandom(2 * PART_BYTES + 5)
    shelf.put("upscalers/up.pth", content)
    told: list[tuple[Stage, int, int]] = []
    file = store.find("upscaler", "up")

    path = store.fetch(file, lambda stage, step, steps: told.append((stage, step, steps)))
    assert path == file.path == store.local_path("upscaler", "up")
    assert path.read_bytes() == content
    assert store.sha256(file) == hashlib.sha256(content).hexdigest()
    megabytes = len(content) // 10**6
    assert (told[0], told[-1]) == (("load", 0, megabytes), ("load", megabytes, megabytes))


def test_an_unknown_name_is_refused_with_those_of_folder_and_bucket(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    shelf.put("checkpoints/far.safetensors", CHECKPOINT)
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    (tmp_path / "models/checkpoints/near.safetensors").write_bytes(CHECKPOINT)

    with pytest.raises(UnknownCheckpoint, match="known: far, near"):
        store.find("checkpoint", "b")


def test_a_renamed_lora_of_a_bucket_is_found_by_its_alias_without_fetching_it(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    style = save({"x.diff": torch.zeros(1)}, metadata={"ss_output_name": "as trained"})
    shelf.put("loras/renamed.safetensors", style)

    assert store.find("lora", "as trained").name == "renamed"
    assert fetched(tmp_path) == []


def test_a_name_that_is_in_folder_and_bucket_is_an_error_that_names_both(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    shelf.put("checkpoints/a.safetensors", CHECKPOINT)
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    (tmp_path / "models/checkpoints/a.safetensors").write_bytes(CHECKPOINT)

    with pytest.raises(WorkerFailure, match=r"checkpoints/a\.safetensors and s3://"):
        store.find("checkpoint", "a")
    assert store.list_models("checkpoint") == ()


def test_a_new_name_is_found_at_once_though_listings_are_kept(
    shelf: Shelf, store: ModelStore
) -> None:
    assert store.list_models("checkpoint") == ()
    shelf.put("checkpoints/new.safetensors", CHECKPOINT)
    assert store.find("checkpoint", "new").family == "sd1"


def test_a_replaced_file_is_another_model_and_never_mixed_with_the_first(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    shelf.put("upscalers/up.pth", b"first")
    first = store.find("upscaler", "up")
    shelf.put("upscalers/up.pth", b"other")

    with pytest.raises(StorageUnavailable, match="replaced or removed"):
        store.fetch(first)
    second = store.find("upscaler", "up")
    assert second != first
    assert store.fetch(second).read_bytes() == b"other"


def test_a_removed_file_is_unknown_once_that_is_noticed(shelf: Shelf, store: ModelStore) -> None:
    shelf.put("loras/style.safetensors", CHECKPOINT)
    file = store.find("lora", "style")
    shelf.delete("loras/style.safetensors")

    with pytest.raises(StorageUnavailable):
        store.fetch(file)
    with pytest.raises(UnknownLora, match="known: none"):
        store.find("lora", "style")


def test_an_object_that_cannot_be_read_is_left_out_and_stops_nobody_else(
    shelf: Shelf, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    """One such object failed every listing: no job was done, no worker announced."""
    shelf.put("loras/good.safetensors", CHECKPOINT)
    shelf.put_secret("loras/secret.safetensors", CHECKPOINT)
    for _ in range(2):
        assert [file.name for file in store.list_models("lora")] == ["good"]
    assert caplog.text.count("lora left out: s3://") == 1

    with pytest.raises(FileUnavailable, match=r"loras/secret\.safetensors cannot be read"):
        store.find("lora", "secret")


def test_what_cannot_be_read_just_now_is_not_done_without(
    shelf: Shelf, store: ModelStore, s3_server: Process, tmp_path: Path
) -> None:
    """Given one checkpoint and another that is out of reach, the first is not the default."""
    resolver = Resolver(WorkerSettings(), store, FileStore(tmp_path / "pictures"))
    shelf.put("checkpoints/a.safetensors", CHECKPOINT)
    assert resolver.default_checkpoint() == "a"
    shelf.put("checkpoints/b.safetensors", CHECKPOINT)
    shelf.put("embeddings/owl.safetensors", EMBEDDING)
    with pytest.raises(UnknownUpscaler):
        store.find("upscaler", "a name that has the bucket listed anew")

    s3_server.kill()
    try:
        assert [file.name for file in store.list_models("checkpoint")] == ["a"]
        assert resolver.default_checkpoint() is None
        with pytest.raises(StorageUnavailable, match=r"checkpoints/b\.safetensors"):
            resolver.resolve_generate(GenerateRequest(prompt="a fox"), "job")
        drawn_with_a = GenerateRequest(prompt="a fox", checkpoint="a")
        assert resolver.resolve_generate(drawn_with_a, "job").pass_inputs.inversions == ()
        with pytest.raises(StorageUnavailable, match=r"embeddings/owl\.safetensors"):
            resolver.resolve_generate(GenerateRequest(prompt="an owl", checkpoint="a"), "job")
    finally:
        s3_server.start()
    assert [file.name for file in store.list_models("checkpoint")] == ["a", "b"]
    with pytest.raises(UnknownCheckpoint, match="no default"):
        resolver.resolve_generate(GenerateRequest(prompt="a fox"), "job")


@pytest.mark.parametrize("kind", ["lora", "embedding"])
def test_an_object_removed_since_it_was_listed_is_left_out(
    kind: NamedKind, shelf: Shelf, store: ModelStore
) -> None:
    shelf.put(f"{kind}s/gone.safetensors", CHECKPOINT)
    assert store.list_models("checkpoint") == ()
    shelf.delete(f"{kind}s/gone.safetensors")
    assert store.list_models(kind) == ()


@pytest.mark.parametrize("stated", ["metadata", "beside"])
def test_a_file_that_is_not_what_is_published_is_refused_and_not_kept(
    stated: str, shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"what was meant").hexdigest()
    metadata = {"sha256": digest} if stated == "metadata" else {}
    shelf.put("upscalers/up.pth", b"what lies there", **metadata)
    if stated == "beside":
        shelf.put("upscalers/up.pth.sha256", f"{digest.upper()}  up.pth\n".encode())

    with pytest.raises(CorruptFile, match=f"published is {digest}"):
        store.fetch(store.find("upscaler", "up"))
    assert fetched(tmp_path) == []


def test_what_is_published_and_right_is_kept(shelf: Shelf, store: ModelStore) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    shelf.put("upscalers/up.pth", b"weights", sha256=digest)
    shelf.put("upscalers/up.pth.sha256", digest.encode())
    assert store.fetch(store.find("upscaler", "up")).read_bytes() == b"weights"


def test_a_cancel_ends_a_download_and_the_next_goes_on_with_it(
    shelf: Shelf, store: ModelStore, tmp_path: Path
) -> None:
    content = os.urandom(3 * PART_BYTES)
    shelf.put("upscalers/large.pth", content)
    file = store.find("upscaler", "large")

    def canceled(stage: Stage, step: int, steps: int) -> None:
        if step:
            raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        store.fetch(file, canceled)
    assert fetched(tmp_path) == []
    told: list[int] = []
    path = store.fetch(file, lambda _stage, step, _steps: told.append(step))
    assert told[0] > 0
    assert path.read_bytes() == content


def test_a_broken_download_that_was_damaged_starts_anew(shelf: Shelf, store: ModelStore) -> None:
    shelf.put("upscalers/up.pth", b"weights")
    file = store.find("upscaler", "up")
    file.path.parent.mkdir(parents=True)
    file.path.with_name(f".{file.path.name}.part").write_bytes(b"\0\0\0")

    with pytest.raises(StorageUnavailable, match="fetched anew"):
        store.fetch(file)
    assert store.fetch(file).read_bytes() == b"weights"


def test_a_broken_download_that_cannot_be_read_is_said_to_be_so(
    shelf: Shelf, store: ModelStore
) -> None:
    """It was said that it could not be written."""
    shelf.put("upscalers/up.pth", b"weights")
    file = store.find("upscaler", "up")
    file.path.parent.mkdir(parents=True)
    part = file.path.with_name(f".{file.path.name}.part")
    part.symlink_to(part)

    with pytest.raises(FileUnavailable, match="cannot be read or written: Too many levels"):
        store.fetch(file)


def test_two_processes_that_want_a_file_at_once_download_it_once(
    shelf: Shelf, tmp_path: Path
) -> None:
    shelf.put("upscalers/large.pth", os.urandom(3 * PART_BYTES))
    processes = multiprocessing.get_context("spawn")
    fetches = processes.SimpleQueue()
    both = [
        processes.Process(target=fetch_in_process, args=(shelf.url, tmp_path, fetches.put))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted([fetches.get(), fetches.get()]) == [0, 1]
    assert fetched(tmp_path) == ["large.pth"]


def test_a_download_that_ends_while_another_looks_at_it_is_used(
    shelf: Shelf, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part was there and then was not, which failed the job that waited for it."""
    shelf.put("upscalers/up.pth", b"weights")
    file = store.find("upscaler", "up")
    part, disk = file.path.with_name(f".{file.path.name}.part"), DiskCache(tmp_path, PLENTY)
    other, stat = ExitStack(), Path.stat
    other.enter_context(disk.pinned(file.path.parent.name))
    other.enter_context(disk.fill_lock(file.path.parent.name, lambda: None))
    part.write_bytes(b"weights")

    def stat_and_end(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = stat(path, follow_symlinks=follow_symlinks)
        if path == part:
            part.rename(file.path)
            other.close()
        return found

    monkeypatch.setattr(Path, "stat", stat_and_end)
    assert store.fetch(file).read_bytes() == b"weights"


def test_versions_that_were_not_used_for_longest_leave_the_disk_first(
    shelf: Shelf, tmp_path: Path
) -> None:
    store = open_store(shelf.url, tmp_path, budget_bytes=2_500_000)
    for name in ("a", "b", "c"):
        shelf.put(f"upscalers/{name}.pth", os.urandom(10**6))
    first, second, third = (store.find("upscaler", name) for name in "abc")
    store.fetch(first)
    store.fetch(second)
    grown_old(tmp_path)
    store.fetch(first)
    store.fetch(third)

    assert fetched(tmp_path) == ["a.pth", "c.pth"]
    assert store.fetch(second).exists()


def test_what_was_used_just_now_stays_though_the_budget_is_exceeded(
    shelf: Shelf, tmp_path: Path
) -> None:
    store = open_store(shelf.url, tmp_path, budget_bytes=1)
    for name in ("a", "b"):
        shelf.put(f"upscalers/{name}.pth", b"weights")
        store.fetch(store.find("upscaler", name))
    assert fetched(tmp_path) == ["a.pth", "b.pth"]


def test_downloads_at_once_make_room_for_each_other(shelf: Shelf, tmp_path: Path) -> None:
    """Each made room for itself alone, and the disk held more than its budget."""
    store = open_store(shelf.url, tmp_path, budget_bytes=2_500_000)
    for name in ("a", "b", "c", "d"):
        shelf.put(f"upscalers/{name}.pth", os.urandom(10**6))
    for name in ("a", "b"):
        store.fetch(store.find("upscaler", name))
    grown_old(tmp_path)
    third, fourth = (store.find("upscaler", name) for name in "cd")

    def fetch_another(stage: Stage, step: int, steps: int) -> None:
        store.fetch(fourth)

    store.fetch(third, fetch_another)
    assert fetched(tmp_path) == ["c.pth", "d.pth"]


def test_a_download_that_goes_on_needs_room_for_its_rest_only(shelf: Shelf, tmp_path: Path) -> None:
    """What was there of it counted twice, and others were evicted for nothing."""
    store = open_store(shelf.url, tmp_path, budget_bytes=4 * PART_BYTES)
    shelf.put("upscalers/other.pth", os.urandom(PART_BYTES // 2))
    shelf.put("upscalers/large.pth", os.urandom(3 * PART_BYTES))
    large = store.find("upscaler", "large")

    def canceled(stage: Stage, step: int, steps: int) -> None:
        if step:
            raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        store.fetch(large, canceled)
    store.fetch(store.find("upscaler", "other"))
    grown_old(tmp_path)
    store.fetch(large)
    assert fetched(tmp_path) == ["large.pth", "other.pth"]


def test_what_a_job_keeps_stays_however_long_it_waits(shelf: Shelf, tmp_path: Path) -> None:
    """A LoRA that was evicted while its job stood in the line for two minutes failed the job."""
    store = open_store(shelf.url, tmp_path, budget_bytes=1)
    for name in ("kept", "other", "third"):
        shelf.put(f"upscalers/{name}.pth", b"weights")
    processes = multiprocessing.get_context("spawn")
    keeps, done = processes.Event(), processes.Event()
    job = processes.Process(target=keep_in_process, args=(shelf.url, tmp_path, keeps, done))
    job.start()
    assert keeps.wait(60)

    grown_old(tmp_path)
    store.fetch(store.find("upscaler", "other"))
    assert fetched(tmp_path) == ["kept.pth", "other.pth"]

    done.set()
    job.join()
    grown_old(tmp_path)
    store.fetch(store.find("upscaler", "third"))
    assert (job.exitcode, fetched(tmp_path)) == (0, ["third.pth"])


def test_a_version_that_was_only_found_is_not_waited_for_on_the_engines_thread(
    shelf: Shelf, store: ModelStore
) -> None:
    """A later job's upscaler, still to be fetched, was fetched there for an earlier job."""
    shelf.put("upscalers/up.pth", b"first")
    first = store.find("upscaler", "up")
    with store.pinned([first]):
        shelf.put("upscalers/up.pth", b"other")
        with pytest.raises(UnknownUpscaler):
            store.find("upscaler", "a name that has it listed anew")
        assert store.find("upscaler", "up") != first
        assert store.local_path("upscaler", "up") == first.path


def test_a_diffusers_folder_of_a_bucket_is_refused_and_its_parts_are_no_models(
    shelf: Shelf, store: ModelStore
) -> None:
    shelf.put("checkpoints/model_index.json", b"{}")
    shelf.put("checkpoints/turbo/model_index.json", b"{}")
    shelf.put("checkpoints/turbo/unet/diffusion_pytorch_model.safetensors", CHECKPOINT)

    shelf.put("checkpoints/a.safetensors", CHECKPOINT)

    assert [file.name for file in store.list_models("checkpoint")] == ["a"]
    with pytest.raises(FileUnavailable, match="turbo is a diffusers folder"):
        store.find("checkpoint", "turbo")


def test_while_the_store_is_away_what_is_on_disk_is_served(
    shelf: Shelf, store: ModelStore, s3_server: Process, tmp_path: Path
) -> None:
    shelf.put("upscalers/up.pth", b"weights")
    shelf.put("upscalers/other.pth", b"weights")
    file, other = (store.find("upscaler", name) for name in ("up", "other"))
    store.fetch(file)
    s3_server.kill()
    try:
        assert store.local_path("upscaler", "up").read_bytes() == b"weights"
        with pytest.raises(StorageUnavailable):
            store.fetch(other)
        with pytest.raises(StorageUnavailable):
            open_store(shelf.url, tmp_path).find("upscaler", "up")
    finally:
        s3_server.start()
