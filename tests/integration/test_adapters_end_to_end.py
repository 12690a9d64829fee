"""Adapters through a real fleet: each job has its own set, which does not affect other jobs."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefleet_producer import (
    BrokerSettings,
    Client,
    GenerateRequest,
    IncompatibleAdapter,
    InvalidRequest,
    Job,
    LoRA,
    StorageSettings,
    TextualInversion,
    UnknownEmbedding,
    UnknownLora,
)
from tests.fleet import TestFleet

SETS: dict[str, tuple[LoRA, ...]] = {
    "one": (LoRA(name="demo-one", scale=0.8),),
    "both": (LoRA(name="demo-one", scale=-0.5), LoRA(name="demo-two", text_encoder_scale=0.3)),
    "none": (),
}
JOBS_PER_CLIENT = 20
SEEDS = 4


@pytest.fixture
def fleet(
    redis_url: str,
    s3_settings_env: dict[str, str],
    demo_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestFleet]:
    environment = {
        **s3_settings_env,
        "IMAGEFLEET_REDIS_URL": redis_url,
        "IMAGEFLEET_MODELS_DIR": str(demo_models),
        "IMAGEFLEET_SPOOL_DIR": str(tmp_path / "spool"),
        "IMAGEFLEET_DEFAULT_CHECKPOINT": "demo",
        # Every switch is verified bit for bit.
        "IMAGEFLEET_VERIFY_EVERY": "1",
        # Batching changes low bits, and these tests compare bytes.
        "IMAGEFLEET_MAX_BATCH_PIXELS": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fleet = TestFleet(environment, tmp_path)
    yield fleet
    fleet.close()


def request_for(prompt: str = "a red fox", seed: int = 1, **fields: object) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {"prompt": prompt, "seed": seed, "num_inference_steps": 4, "width": 64, "height": 64}
        | fields
    )


def test_three_clients_with_three_sets_get_the_same_images_as_from_a_fresh_process(
    fleet: TestFleet, redis_url: str
) -> None:
    rng = random.Random(7)

    def send(name: str) -> list[tuple[str, int, bytes]]:
        with Client(BrokerSettings(redis_url=redis_url), StorageSettings()) as client:
            seeds = [rng.randrange(SEEDS) for _ in range(JOBS_PER_CLIENT)]
            jobs = [client.generate(request_for(seed=seed, loras=SETS[name])) for seed in seeds]
            return [
                (name, seed, job.files(timeout=120)[0])
                for seed, job in zip(seeds, jobs, strict=True)
            ]

    fleet.start_worker()
    with ThreadPoolExecutor(len(SETS)) as pool:
        rendered = [image for images in pool.map(send, SETS) for image in images]
    assert len(rendered) == 60
    for worker in fleet.workers:
        worker.stop()
    for name, loras in SETS.items():
        fresh = fleet.start_worker()
        jobs = {
            seed: fleet.client.generate(request_for(seed=seed, loras=loras))
            for seed in range(SEEDS)
        }
        expected = {seed: job.files(timeout=60)[0] for seed, job in jobs.items()}
        fresh.stop()
        for set_name, seed, content in rendered:
            if set_name == name:
                assert content == expected[seed], f"set {name}, seed {seed}"
    assert len({content for _, _, content in rendered}) == len(SETS) * SEEDS


def test_adapters_by_tag_and_by_field_and_invalid_ones(fleet: TestFleet) -> None:
    fleet.start_worker()

    def generate(request: GenerateRequest) -> Job:
        return fleet.client.generate(request)

    plain = generate(request_for("a red fox demo-token"))
    before = generate(request_for()).files(timeout=60)

    by_tag = generate(request_for("a red fox<lora:demo-one:0.8>")).images(timeout=60)[0]
    by_field = generate(request_for(loras=[LoRA(name="demo-one", scale=0.8)])).images(timeout=60)[0]
    assert by_tag.tobytes() == by_field.tobytes()
    assert 'Lora hashes: "demo-one: ' in by_field.info["parameters"]
    assert "<lora:demo-one:0.8:0.8>" in by_field.info["parameters"]

    custom_token = TextualInversion(name="demo-token", token="sks")
    by_token = generate(request_for("a red fox sks", textual_inversions=[custom_token])).images(
        timeout=60
    )[0]
    by_name = plain.images(timeout=60)[0]
    assert by_token.tobytes() == by_name.tobytes()
    assert 'TI hashes: "demo-token: ' in by_name.info["parameters"]

    for request, error, words in (
        (request_for("a <lora:nothing:1>"), UnknownLora, "known: demo-one, demo-two"),
        (
            request_for("a <lora:demo-one:1>", loras=[LoRA(name="demo-one", scale=0.5)]),
            InvalidRequest,
            "twice",
        ),
        (request_for("a <lora:demo-one:x>"), InvalidRequest, "<lora:demo-one:x>"),
        (request_for(negative_prompt="<lora:demo-one:1>"), InvalidRequest, "negative"),
        (
            request_for(textual_inversions=[TextualInversion(name="no")]),
            UnknownEmbedding,
            "demo-token",
        ),
        (request_for(textual_inversions=[custom_token]), InvalidRequest, "'sks' stands in neither"),
        (
            request_for(checkpoint="demo-xl", loras=[LoRA(name="demo-one")]),
            IncompatibleAdapter,
            "does not fit the SDXL checkpoint",
        ),
        (
            request_for("a sks", checkpoint="demo-xl", textual_inversions=[custom_token]),
            IncompatibleAdapter,
            "demo-token",
        ),
    ):
        with pytest.raises(error, match=words):
            generate(request).result(timeout=60)

    assert generate(request_for()).files(timeout=60) == before, (
        "byte for byte as before all of them"
    )


def test_a_file_replaced_under_the_same_name_is_loaded_again(
    fleet: TestFleet, demo_models: Path
) -> None:
    lora = demo_models / "loras/replaced.safetensors"
    lora.write_bytes((demo_models / "loras/demo-one.safetensors").read_bytes())
    try:
        fleet.start_worker()
        request = request_for(loras=[LoRA(name="replaced")])
        first = fleet.client.generate(request).images(timeout=60)[0]
        lora.write_bytes((demo_models / "loras/demo-two.safetensors").read_bytes())
        second = fleet.client.generate(request).images(timeout=60)[0]
    finally:
        lora.unlink()
    two = fleet.client.generate(request_for(loras=[LoRA(name="demo-two")])).images(timeout=60)[0]
    assert second.tobytes() == two.tobytes() != first.tobytes()
