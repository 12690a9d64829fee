"""Models of a bucket: a real S3 server, and several processes that need the same file."""

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
UNLIMITED_BYTES = 2**40
CHECKPOINT = save({key: torch.zeros(1, 4, 1, 1) for key in SD1})
EMBEDDING = save({"emb_params": torch.zeros(1, 768)})


class BucketPrefix:
    """A prefix of the bucket that a test fills with models."""

    def __init__(self, s3: "S3Client", prefix: str) -> None:
        self._s3, self._prefix = s3, prefix
        self.url = f"s3://{BUCKET}/{prefix}"

    def put(self, path: str, content: bytes, **metadata: str) -> None:
        self._s3.put_object(
            Bucket=BUCKET, Key=f"{self._prefix}/{path}", Body=content, Metadata=metadata
        )

    def put_secret(self, path: str, content: bytes) -> None:
        """Upload an object that cannot be read without its encryption key."""
        self._s3.put_object(
            Bucket=BUCKET,
            Key=f"{self._prefix}/{path}",
            Body=content,
            SSECustomerAlgorithm="AES256",
            SSECustomerKey=os.urandom(32),
        )

    def delete(self, path: str) -> None:
        self._s3.delete_object(Bucket=BUCKET, Key=f"{self._prefix}/{path}")


def open_store(url: str, folder: Path, budget_bytes: int = UNLIMITED_BYTES) -> ModelStore:
    models = ModelBucket(StorageSettings(), url)
    return ModelStore(folder / "models", RemoteModels(models, DiskCache(folder, budget_bytes)))


def fetch_in_process(
    url: str, folder: Path, report_fetches: Callable[[float | None], None]
) -> None:
    store = open_store(url, folder)
    path = store.fetch(store.find("upscaler", "large"))
    assert path.stat().st_size == 3 * PART_BYTES
    report_fetches(REGISTRY.get_sample_value("imagefleet_model_fetches_total"))


def pin_in_process(url: str, folder: Path, pinned: Event, done: Event) -> None:
    store = open_store(url, folder, budget_bytes=1)
    with store.pinned([store.find("upscaler", "pinned")]):
        pinned.set()
        assert done.wait(60)
        assert store.local_path("upscaler", "pinned").read_bytes() == b"weights"


@pytest.fixture
def bucket(
    s3_settings_env: dict[str, str], unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> BucketPrefix:
    for name, value in s3_settings_env.items():
        monkeypatch.setenv(name, value)
    settings = StorageSettings()
    return BucketPrefix(s3_client(settings, settings.s3_endpoint_url), unique_prefix)


@pytest.fixture
def store(bucket: BucketPrefix, tmp_path: Path) -> ModelStore:
    return open_store(bucket.url, tmp_path)


def fetched(folder: Path) -> list[str]:
    """Names of the completely downloaded files in a cache."""
    return sorted(
        path.name
        for path in (folder / "versions").glob("*/*")
        if path.is_file() and not path.name.startswith(".")
    )


def make_old(folder: Path) -> None:
    """Make every version in a cache look unused for long, each longer than the next."""
    for age, version in enumerate((folder / "versions").iterdir(), start=1):
        used_s = time() - age - 2 * EVICTION_GRACE_S
        os.utime(version, times=(used_s, used_s))


def test_a_bucket_is_listed_by_a1111s_folders_without_fetching_checkpoints(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    bucket.put("Stable-diffusion/anime/theirs.safetensors", CHECKPOINT)
    bucket.put("checkpoints/notes.txt", b"no model")
    bucket.put("checkpoints/.hidden.safetensors", CHECKPOINT)
    bucket.put("checkpoints/old.ckpt", b"PK\x03\x04 and so on")
    bucket.put("ESRGAN/up.pth", b"weights")
    bucket.put("else/other.safetensors", CHECKPOINT)

    listed = [(file.name, file.family) for file in store.list_models("checkpoint")]
    assert listed == [("theirs", "sd1")]
    assert [file.name for file in store.list_models("upscaler")] == ["up"]
    with pytest.raises(CorruptFile, match=r"(?s)old\.ckpt is a pickle.*save_file"):
        store.find("checkpoint", "old")
    assert fetched(tmp_path) == []


def test_a_header_longer_than_the_first_read_is_read_completely(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    tensors = {key: torch.zeros(1, 4, 1, 1) for key in SD1}
    content = save(tensors, metadata={"notes": "long " * 50_000})
    bucket.put("checkpoints/a.safetensors", content)

    assert store.find("checkpoint", "a").family == "sd1"
    assert fetched(tmp_path) == []


def test_a_file_is_downloaded_and_its_hash_is_known(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    content = os.urandom(2 * PART_BYTES + 5)
    bucket.put("upscalers/up.pth", content)
    reported: list[tuple[Stage, int, int]] = []
    file = store.find("upscaler", "up")

    path = store.fetch(file, lambda stage, step, steps: reported.append((stage, step, steps)))
    assert path == file.path == store.local_path("upscaler", "up")
    assert path.read_bytes() == content
    assert store.sha256(file) == hashlib.sha256(content).hexdigest()
    megabytes = len(content) // 10**6
    assert (reported[0], reported[-1]) == (("load", 0, megabytes), ("load", megabytes, megabytes))


def test_an_unknown_name_is_refused_with_the_names_of_folder_and_bucket(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    bucket.put("checkpoints/far.safetensors", CHECKPOINT)
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    (tmp_path / "models/checkpoints/near.safetensors").write_bytes(CHECKPOINT)

    with pytest.raises(UnknownCheckpoint, match="known: far, near"):
        store.find("checkpoint", "b")


def test_a_renamed_lora_of_a_bucket_is_found_by_its_alias_without_fetching_it(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    style = save({"x.diff": torch.zeros(1)}, metadata={"ss_output_name": "as trained"})
    bucket.put("loras/renamed.safetensors", style)

    assert store.find("lora", "as trained").name == "renamed"
    assert fetched(tmp_path) == []


def test_a_name_that_is_in_folder_and_bucket_is_an_error_that_names_both(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    bucket.put("checkpoints/a.safetensors", CHECKPOINT)
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    (tmp_path / "models/checkpoints/a.safetensors").write_bytes(CHECKPOINT)

    with pytest.raises(WorkerFailure, match=r"checkpoints/a\.safetensors and s3://"):
        store.find("checkpoint", "a")
    assert store.list_models("checkpoint") == ()


def test_a_new_name_is_found_at_once_though_listings_are_cached(
    bucket: BucketPrefix, store: ModelStore
) -> None:
    assert store.list_models("checkpoint") == ()
    bucket.put("checkpoints/new.safetensors", CHECKPOINT)
    assert store.find("checkpoint", "new").family == "sd1"


def test_a_replaced_file_is_another_model_and_never_mixed_with_the_first(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    bucket.put("upscalers/up.pth", b"first")
    first = store.find("upscaler", "up")
    bucket.put("upscalers/up.pth", b"other")

    with pytest.raises(StorageUnavailable, match="replaced or removed"):
        store.fetch(first)
    second = store.find("upscaler", "up")
    assert second != first
    assert store.fetch(second).read_bytes() == b"other"


def test_a_removed_file_is_unknown_after_a_failed_download(
    bucket: BucketPrefix, store: ModelStore
) -> None:
    bucket.put("loras/style.safetensors", CHECKPOINT)
    file = store.find("lora", "style")
    bucket.delete("loras/style.safetensors")

    with pytest.raises(StorageUnavailable):
        store.fetch(file)
    with pytest.raises(UnknownLora, match="known: none"):
        store.find("lora", "style")


def test_an_object_that_cannot_be_read_is_not_listed_and_affects_no_other(
    bucket: BucketPrefix, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    """One such object failed every listing: no job ran, no worker was announced."""
    bucket.put("loras/good.safetensors", CHECKPOINT)
    bucket.put_secret("loras/secret.safetensors", CHECKPOINT)
    for _ in range(2):
        assert [file.name for file in store.list_models("lora")] == ["good"]
    assert caplog.text.count("lora left out: s3://") == 1

    with pytest.raises(FileUnavailable, match=r"loras/secret\.safetensors cannot be read"):
        store.find("lora", "secret")


def test_models_that_are_unreachable_for_now_are_not_ignored(
    bucket: BucketPrefix, store: ModelStore, s3_server: Process, tmp_path: Path
) -> None:
    """With one checkpoint and another that is unreachable, the first is not the default."""
    resolver = Resolver(WorkerSettings(), store, FileStore(tmp_path / "pictures"))
    bucket.put("checkpoints/a.safetensors", CHECKPOINT)
    assert resolver.default_checkpoint() == "a"
    bucket.put("checkpoints/b.safetensors", CHECKPOINT)
    bucket.put("embeddings/owl.safetensors", EMBEDDING)
    with pytest.raises(UnknownUpscaler):
        store.find("upscaler", "a name that makes it list the bucket again")

    s3_server.kill()
    try:
        assert [file.name for file in store.list_models("checkpoint")] == ["a"]
        assert resolver.default_checkpoint() is None
        with pytest.raises(StorageUnavailable, match=r"checkpoints/b\.safetensors"):
            resolver.resolve_generate(GenerateRequest(prompt="a fox"), "job")
        request_with_a = GenerateRequest(prompt="a fox", checkpoint="a")
        assert resolver.resolve_generate(request_with_a, "job").pass_inputs.inversions == ()
        with pytest.raises(StorageUnavailable, match=r"embeddings/owl\.safetensors"):
            resolver.resolve_generate(GenerateRequest(prompt="an owl", checkpoint="a"), "job")
    finally:
        s3_server.start()
    assert [file.name for file in store.list_models("checkpoint")] == ["a", "b"]
    with pytest.raises(UnknownCheckpoint, match="no default"):
        resolver.resolve_generate(GenerateRequest(prompt="a fox"), "job")


@pytest.mark.parametrize("kind", ["lora", "embedding"])
def test_an_object_removed_since_the_listing_is_not_listed(
    kind: NamedKind, bucket: BucketPrefix, store: ModelStore
) -> None:
    bucket.put(f"{kind}s/gone.safetensors", CHECKPOINT)
    assert store.list_models("checkpoint") == ()
    bucket.delete(f"{kind}s/gone.safetensors")
    assert store.list_models(kind) == ()


@pytest.mark.parametrize("stated", ["metadata", "beside"])
def test_a_file_that_does_not_match_its_published_checksum_is_refused_and_not_cached(
    stated: str, bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"expected").hexdigest()
    metadata = {"sha256": digest} if stated == "metadata" else {}
    bucket.put("upscalers/up.pth", b"actual", **metadata)
    if stated == "beside":
        bucket.put("upscalers/up.pth.sha256", f"{digest.upper()}  up.pth\n".encode())

    with pytest.raises(CorruptFile, match=f"published is {digest}"):
        store.fetch(store.find("upscaler", "up"))
    assert fetched(tmp_path) == []


def test_a_file_that_matches_its_published_checksum_is_cached(
    bucket: BucketPrefix, store: ModelStore
) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    bucket.put("upscalers/up.pth", b"weights", sha256=digest)
    bucket.put("upscalers/up.pth.sha256", digest.encode())
    assert store.fetch(store.find("upscaler", "up")).read_bytes() == b"weights"


def test_a_cancel_stops_a_download_and_the_next_one_resumes_it(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path
) -> None:
    content = os.urandom(3 * PART_BYTES)
    bucket.put("upscalers/large.pth", content)
    file = store.find("upscaler", "large")

    def canceled(stage: Stage, step: int, steps: int) -> None:
        if step:
            raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        store.fetch(file, canceled)
    assert fetched(tmp_path) == []
    reported: list[int] = []
    path = store.fetch(file, lambda _stage, step, _steps: reported.append(step))
    assert reported[0] > 0
    assert path.read_bytes() == content


def test_a_damaged_partial_download_starts_again(bucket: BucketPrefix, store: ModelStore) -> None:
    bucket.put("upscalers/up.pth", b"weights")
    file = store.find("upscaler", "up")
    file.path.parent.mkdir(parents=True)
    file.path.with_name(f".{file.path.name}.part").write_bytes(b"\0\0\0")

    with pytest.raises(StorageUnavailable, match="fetched anew"):
        store.fetch(file)
    assert store.fetch(file).read_bytes() == b"weights"


def test_a_partial_download_that_cannot_be_read_is_reported_as_such(
    bucket: BucketPrefix, store: ModelStore
) -> None:
    """The error said that it could not be written."""
    bucket.put("upscalers/up.pth", b"weights")
    file = store.find("upscaler", "up")
    file.path.parent.mkdir(parents=True)
    part = file.path.with_name(f".{file.path.name}.part")
    part.symlink_to(part)

    with pytest.raises(FileUnavailable, match="cannot be read or written: Too many levels"):
        store.fetch(file)


def test_two_processes_that_need_a_file_at_once_download_it_once(
    bucket: BucketPrefix, tmp_path: Path
) -> None:
    bucket.put("upscalers/large.pth", os.urandom(3 * PART_BYTES))
    processes = multiprocessing.get_context("spawn")
    fetches = processes.SimpleQueue()
    both = [
        processes.Process(target=fetch_in_process, args=(bucket.url, tmp_path, fetches.put))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted([fetches.get(), fetches.get()]) == [0, 1]
    assert fetched(tmp_path) == ["large.pth"]


def test_a_download_that_ends_while_another_process_checks_it_is_used(
    bucket: BucketPrefix, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partial file existed and then did not, which failed the job that waited for it."""
    bucket.put("upscalers/up.pth", b"weights")
    file = store.find("upscaler", "up")
    part, disk = (
        file.path.with_name(f".{file.path.name}.part"),
        DiskCache(tmp_path, UNLIMITED_BYTES),
    )
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


def test_the_least_recently_used_versions_are_evicted_first(
    bucket: BucketPrefix, tmp_path: Path
) -> None:
    store = open_store(bucket.url, tmp_path, budget_bytes=2_500_000)
    for name in ("a", "b", "c"):
        bucket.put(f"upscalers/{name}.pth", os.urandom(10**6))
    first, second, third = (store.find("upscaler", name) for name in "abc")
    store.fetch(first)
    store.fetch(second)
    make_old(tmp_path)
    store.fetch(first)
    store.fetch(third)

    assert fetched(tmp_path) == ["a.pth", "c.pth"]
    assert store.fetch(second).exists()


def test_recently_used_versions_are_not_evicted_even_above_the_budget(
    bucket: BucketPrefix, tmp_path: Path
) -> None:
    store = open_store(bucket.url, tmp_path, budget_bytes=1)
    for name in ("a", "b"):
        bucket.put(f"upscalers/{name}.pth", b"weights")
        store.fetch(store.find("upscaler", name))
    assert fetched(tmp_path) == ["a.pth", "b.pth"]


def test_concurrent_downloads_evict_enough_for_each_other(
    bucket: BucketPrefix, tmp_path: Path
) -> None:
    """Each evicted enough for itself alone, and the disk exceeded its budget."""
    store = open_store(bucket.url, tmp_path, budget_bytes=2_500_000)
    for name in ("a", "b", "c", "d"):
        bucket.put(f"upscalers/{name}.pth", os.urandom(10**6))
    for name in ("a", "b"):
        store.fetch(store.find("upscaler", name))
    make_old(tmp_path)
    third, fourth = (store.find("upscaler", name) for name in "cd")

    def fetch_another(stage: Stage, step: int, steps: int) -> None:
        store.fetch(fourth)

    store.fetch(third, fetch_another)
    assert fetched(tmp_path) == ["c.pth", "d.pth"]


def test_a_resumed_download_needs_space_for_the_rest_only(
    bucket: BucketPrefix, tmp_path: Path
) -> None:
    """The part on disk counted twice, and other versions were evicted for nothing."""
    store = open_store(bucket.url, tmp_path, budget_bytes=4 * PART_BYTES)
    bucket.put("upscalers/other.pth", os.urandom(PART_BYTES // 2))
    bucket.put("upscalers/large.pth", os.urandom(3 * PART_BYTES))
    large = store.find("upscaler", "large")

    def canceled(stage: Stage, step: int, steps: int) -> None:
        if step:
            raise JobCanceled("job")

    with pytest.raises(JobCanceled):
        store.fetch(large, canceled)
    store.fetch(store.find("upscaler", "other"))
    make_old(tmp_path)
    store.fetch(large)
    assert fetched(tmp_path) == ["large.pth", "other.pth"]


def test_a_pinned_version_is_not_evicted_however_long_its_job_waits(
    bucket: BucketPrefix, tmp_path: Path
) -> None:
    """A LoRA that was evicted while its job was queued for two minutes failed the job."""
    store = open_store(bucket.url, tmp_path, budget_bytes=1)
    for name in ("pinned", "other", "third"):
        bucket.put(f"upscalers/{name}.pth", b"weights")
    processes = multiprocessing.get_context("spawn")
    pinned, done = processes.Event(), processes.Event()
    job = processes.Process(target=pin_in_process, args=(bucket.url, tmp_path, pinned, done))
    job.start()
    assert pinned.wait(60)

    make_old(tmp_path)
    store.fetch(store.find("upscaler", "other"))
    assert fetched(tmp_path) == ["other.pth", "pinned.pth"]

    done.set()
    job.join()
    make_old(tmp_path)
    store.fetch(store.find("upscaler", "third"))
    assert (job.exitcode, fetched(tmp_path)) == (0, ["third.pth"])


def test_local_path_returns_the_pinned_version_and_not_a_newer_one(
    bucket: BucketPrefix, store: ModelStore
) -> None:
    """A newer version, not yet downloaded, was downloaded on the engine's thread."""
    bucket.put("upscalers/up.pth", b"first")
    first = store.find("upscaler", "up")
    with store.pinned([first]):
        bucket.put("upscalers/up.pth", b"other")
        with pytest.raises(UnknownUpscaler):
            store.find("upscaler", "a name that makes it list the bucket again")
        assert store.find("upscaler", "up") != first
        assert store.local_path("upscaler", "up") == first.path


def test_a_diffusers_folder_of_a_bucket_is_refused_and_its_files_are_not_models(
    bucket: BucketPrefix, store: ModelStore
) -> None:
    bucket.put("checkpoints/model_index.json", b"{}")
    bucket.put("checkpoints/turbo/model_index.json", b"{}")
    bucket.put("checkpoints/turbo/unet/diffusion_pytorch_model.safetensors", CHECKPOINT)

    bucket.put("checkpoints/a.safetensors", CHECKPOINT)

    assert [file.name for file in store.list_models("checkpoint")] == ["a"]
    with pytest.raises(FileUnavailable, match="turbo is a diffusers folder"):
        store.find("checkpoint", "turbo")


def test_cached_models_are_served_while_the_bucket_is_unreachable(
    bucket: BucketPrefix, store: ModelStore, s3_server: Process, tmp_path: Path
) -> None:
    bucket.put("upscalers/up.pth", b"weights")
    bucket.put("upscalers/other.pth", b"weights")
    file, other = (store.find("upscaler", name) for name in ("up", "other"))
    store.fetch(file)
    s3_server.kill()
    try:
        assert store.local_path("upscaler", "up").read_bytes() == b"weights"
        with pytest.raises(StorageUnavailable):
            store.fetch(other)
        with pytest.raises(StorageUnavailable):
            open_store(bucket.url, tmp_path).find("upscaler", "up")
    finally:
        s3_server.start()
