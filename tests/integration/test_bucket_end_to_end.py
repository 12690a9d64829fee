"""A fleet whose models are all in a bucket lists them and renders with them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefleet_producer import GenerateRequest, HiresPass, LoRA, StorageSettings
from imagefleet_shared.broker import connect
from imagefleet_shared.presence import live_workers
from imagefleet_shared.storage import FileStore, s3_client
from imagefleet_worker.catalog.remote import open_remote
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings
from localfleet.servers import BUCKET
from tests.fleet import TestFleet, wait_for
from tests.jobs import record

HIRES = {"scale": 1.5, "upscaler": "demo-x2", "num_inference_steps": 1}


def in_cache(folder: Path) -> set[str]:
    """Names of the completely downloaded files."""
    return {path.name for path in (folder / "cache/versions").glob("*/*.safetensors")}


@pytest.fixture
def environment(
    s3_settings_env: dict[str, str],
    unique_prefix: str,
    demo_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """Environment of workers that have the demo's models in the bucket only."""
    environment = {
        **s3_settings_env,
        "IMAGEFLEET_MODELS_URL": f"s3://{BUCKET}/{unique_prefix}/models",
        "IMAGEFLEET_MODEL_CACHE_DIR": str(tmp_path / "cache"),
        "IMAGEFLEET_MODELS_DIR": str(tmp_path / "none"),
        "IMAGEFLEET_SPOOL_DIR": str(tmp_path / "spool"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = StorageSettings()
    s3 = s3_client(settings, settings.s3_endpoint_url)
    for path in demo_models.glob("*/*.safetensors"):
        key = f"{unique_prefix}/models/{path.relative_to(demo_models)}"
        s3.upload_file(str(path), BUCKET, key)
    return environment


@pytest.fixture
def fleet(
    environment: dict[str, str], redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestFleet]:
    monkeypatch.setenv("IMAGEFLEET_REDIS_URL", redis_url)
    fleet = TestFleet({**environment, "IMAGEFLEET_REDIS_URL": redis_url}, tmp_path)
    yield fleet
    fleet.close()


def test_a_job_has_all_its_models_on_local_disk_and_no_others(
    environment: dict[str, str], tmp_path: Path
) -> None:
    models = ModelStore(tmp_path / "none", open_remote(WorkerSettings(), StorageSettings()))
    resolver = Resolver(WorkerSettings(), models, FileStore(tmp_path / "pictures"))
    request = GenerateRequest(
        prompt="a fox <lora:demo-one:1>",
        checkpoint="demo",
        hires=HiresPass.model_validate(HIRES),
    )
    with resolver.on_disk(record(request)):
        cached = in_cache(tmp_path)

    needed = {"demo.safetensors", "demo-one.safetensors", "demo-x2.safetensors"}
    # Embeddings have no metadata that describes them, so all are downloaded.
    embeddings = {file.path.name for file in models.list_models("embedding")}
    assert cached == needed | embeddings


def test_models_of_a_queued_job_stay_on_disk(fleet: TestFleet, tmp_path: Path) -> None:
    """They were evicted after two minutes in the queue, and the job then failed."""
    fleet.start_sleeper(models=True, slots="3", model_disk_gb="1e-9")

    def enqueue(name: str, checkpoint: str, *loras: LoRA) -> None:
        fleet.client.generate(
            GenerateRequest(
                prompt=f"{name} 600", checkpoint=checkpoint, loras=loras, width=64, height=64
            )
        )

    enqueue("first", "demo")
    wait_for(lambda: fleet.runs() == ["first"], 60, "the engine is busy")
    enqueue("waits", "demo", LoRA(name="demo-one"))
    wait_for(lambda: "demo-one.safetensors" in in_cache(tmp_path), 60, "it has its models")
    for version in (tmp_path / "cache/versions").iterdir():
        os.utime(version, times=(0, 0))
    enqueue("later", "demo-xl")
    wait_for(lambda: "demo-xl.safetensors" in in_cache(tmp_path), 60, "another has its own")

    assert {"demo.safetensors", "demo-one.safetensors"} <= in_cache(tmp_path)


def test_a_worker_lists_and_renders_with_models_of_the_bucket(fleet: TestFleet) -> None:
    fleet.start_worker(device="cpu")
    with connect(fleet.broker, retries=2) as redis:
        [worker] = live_workers(redis)
    listed = {(model.kind, model.name) for model in worker.models}
    assert {("checkpoint", "demo"), ("lora", "demo-one"), ("upscaler", "demo-x2")} <= listed

    job = fleet.client.generate(
        GenerateRequest(
            prompt="a red fox",
            checkpoint="demo",
            width=64,
            height=64,
            num_inference_steps=2,
            loras=(LoRA(name="demo-one"),),
            hires=HiresPass.model_validate(HIRES),
        )
    )
    assert job.result(timeout=300).images[0].width == 96
