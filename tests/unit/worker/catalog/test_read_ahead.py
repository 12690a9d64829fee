"""Checkpoints are read and hashed by jobs that wait, and only those that are not loaded."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore

SD1 = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    (tmp_path / "checkpoints").mkdir()
    save_file({key: torch.zeros(1, 4, 1, 1) for key in SD1}, tmp_path / "checkpoints/a.safetensors")
    return ModelStore(tmp_path)


@pytest.fixture
def file(store: ModelStore) -> ModelFile:
    return store.find("checkpoint", "a")


def test_the_hash_of_a_checkpoint_that_is_not_loaded_is_taken(
    store: ModelStore, file: ModelFile
) -> None:
    store.read_ahead.read([file])
    assert store.known_sha256(file) == hashlib.sha256(file.path.read_bytes()).hexdigest()


def test_what_is_loaded_is_not_read_until_it_is_dropped(store: ModelStore, file: ModelFile) -> None:
    store.read_ahead.loaded(file)
    store.read_ahead.read([file])
    assert store.known_sha256(file) is None

    store.read_ahead.unloaded(file)
    store.read_ahead.read([file])
    assert store.known_sha256(file) is not None


def test_a_file_that_is_gone_is_left_to_whoever_loads_it(
    store: ModelStore, file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.unlink()
    store.read_ahead.read([file])
    assert "a is not read ahead" in caplog.text
