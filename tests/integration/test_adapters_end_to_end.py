"""Adapters through the real queue: each job has its own set, and none leaves a trace."""

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
        # Every change of a set is verified bit for bit.
        "IMAGEFLEET_VERIFY_EVERY": "1",
        # A batch differs from a job alone in low bits; here only equal bytes will do.
        "IMAGEFLEET_MAX_BATCH_PIXELS": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fleet = TestFleet(environment, tmp_path)
    yield fleet
    fleet.close()


def asked(prompt: str = "a red fox", seed: int = 1, **fields: object) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {"prompt": prompt, "seed": seed, "num_inference_steps": 4, "width": 64, "height": 64}
        | fields
    )


def test_three_clients_with_three_sets_get_what_a_fresh_process_gives(
    fleet: TestFleet, redis_url: str
) -> None:
    order = random.Random(7)

    def send(name: str) -> list[tuple[str, int, bytes]]:
        with Client(BrokerSettings(redis_url=redis_url), StorageSettings()) as client:
            seeds = [order.randrange(SEEDS) for _ in range(JOBS_PER_CLIENT)]
            jobs = [client.generate(asked(seed=seed, loras=SETS[name])) for seed in seeds]
            return [
                (name, seed, job.files(timeout=120)[0])
                for seed, job in zip(seeds, jobs, strict=True)
            ]

    fleet.start_worker()
    with ThreadPoolExecutor(len(SETS)) as pool:
        drawn = [picture for pictures in pool.map(send, SETS) for picture in pictures]
    assert len(drawn) == 60
    for worker in fleet.workers:
        worker.stop()
    for name, loras in SETS.items():
        fresh = fleet.start_worker()
        jobs = {seed: fleet.client.generate(asked(seed=seed, loras=loras)) for seed in range(SEEDS)}
        expected = {seed: job.files(timeout=60)[0] for seed, job in jobs.items()}
        fresh.stop()
        for drawn_name, seed, content in drawn:
            if drawn_name == name:
                assert content == expected[seed], f"set {name}, seed {seed}"
    assert len({content for _, _, content in drawn}) == len(SETS) * SEEDS


def test_adapters_by_tag_by_field_and_refused(fleet: TestFleet) -> None:
    fleet.start_worker()

    def draw(request: GenerateRequest) -> Job:
        return fleet.client.generate(request)

    plain = draw(asked("a red fox demo-token"))
    before = draw(asked()).files(timeout=60)

    by_tag = draw(asked("a red fox<lora:demo-one:0.8>")).images(timeout=60)[0]
    by_field = draw(asked(loras=[LoRA(name="demo-one", scale=0.8)])).images(timeout=60)[0]
    assert by_tag.tobytes() == by_field.tobytes()
    assert 'Lora hashes: "demo-one: ' in by_field.info["parameters"]
    assert "<lora:demo-one:0.8:0.8>" in by_field.info["parameters"]

    own_word = TextualInversion(name="demo-token", token="sks")
    by_word = draw(asked("a red fox sks", textual_inversions=[own_word])).images(timeout=60)[0]
    by_name = plain.images(timeout=60)[0]
    assert by_word.tobytes() == by_name.tobytes()
    assert 'TI hashes: "demo-token: ' in by_name.info["parameters"]

    for request, error, words in (
        (asked("a <lora:nothing:1>"), UnknownLora, "known: demo-one, demo-two"),
        (
            asked("a <lora:demo-one:1>", loras=[LoRA(name="demo-one", scale=0.5)]),
            InvalidRequest,
            "twice",
        ),
        (asked("a <lora:demo-one:x>"), InvalidRequest, "<lora:demo-one:x>"),
        (asked(negative_prompt="<lora:demo-one:1>"), InvalidRequest, "negative"),
        (asked(textual_inversions=[TextualInversion(name="no")]), UnknownEmbedding, "demo-token"),
        (asked(textual_inversions=[own_word]), InvalidRequest, "'sks' stands in neither"),
        (
            asked(checkpoint="demo-xl", loras=[LoRA(name="demo-one")]),
            IncompatibleAdapter,
            "does not fit the SDXL checkpoint",
        ),
        (
            asked("a sks", checkpoint="demo-xl", textual_inversions=[own_word]),
            IncompatibleAdapter,
            "demo-token",
        ),
    ):
        with pytest.raises(error, match=words):
            draw(request).result(timeout=60)

    assert draw(asked()).files(timeout=60) == before, "byte for byte as before all of them"


def test_a_file_replaced_under_the_same_name_is_merged_anew(
    fleet: TestFleet, demo_models: Path
) -> None:
    lora = demo_models / "loras/replaced.safetensors"
    lora.write_bytes((demo_models / "loras/demo-one.safetensors").read_bytes())
    try:
        fleet.start_worker()
        request = asked(loras=[LoRA(name="replaced")])
        first = fleet.client.generate(request).images(timeout=60)[0]
        lora.write_bytes((demo_models / "loras/demo-two.safetensors").read_bytes())
        second = fleet.client.generate(request).images(timeout=60)[0]
    finally:
        lora.unlink()
    two = fleet.client.generate(asked(loras=[LoRA(name="demo-two")])).images(timeout=60)[0]
    assert second.tobytes() == two.tobytes() != first.tobytes()
