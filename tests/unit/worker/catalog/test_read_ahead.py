"""Queued jobs read and hash checkpoints that are not loaded."""

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


def test_a_checkpoint_that_is_not_loaded_is_hashed(store: ModelStore, file: ModelFile) -> None:
    store.read_ahead.read([file])
    assert store.cached_sha256(file) == hashlib.sha256(file.path.read_bytes()).hexdigest()


def test_a_loaded_checkpoint_is_not_read_until_it_is_dropped(
    store: ModelStore, file: ModelFile
) -> None:
    store.read_ahead.mark_loaded(file)
    store.read_ahead.read([file])
    assert store.cached_sha256(file) is None

    store.read_ahead.mark_unloaded(file)
    store.read_ahead.read([file])
    assert store.cached_sha256(file) is not None


def test_a_missing_file_is_only_logged(
    store: ModelStore, file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.unlink()
    store.read_ahead.read([file])
    assert "a is not read ahead" in caplog.text
