"""LoRAs are found by alias, the name they were trained under, as in A1111."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefleet_shared.errors import InvalidRequest, UnknownLora
from imagefleet_shared.request_parts import LoRA
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.find_adapters import find_loras

LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def put_lora(path: Path, alias: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.ones(1, 4),
        f"{LAYER}.lora_up.weight": torch.ones(4, 1),
    }
    save_file(tensors, path, metadata={"ss_output_name": alias})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    put_lora(tmp_path / "loras" / "renamed.safetensors", "as trained")
    checkpoint = tmp_path / "checkpoints" / "demo.safetensors"
    checkpoint.parent.mkdir()
    unet, clip = "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x"
    save_file({unet: torch.zeros(1, 4, 1, 1), clip: torch.zeros(1)}, checkpoint)
    return ModelStore(tmp_path)


def test_a_renamed_lora_is_found_by_its_alias(store: ModelStore) -> None:
    """A1111's extra networks page inserts the alias, so prompts and infotexts contain it."""
    assert store.find("lora", "as trained").name == "renamed"


def test_a_files_name_takes_precedence_over_anothers_alias(
    store: ModelStore, tmp_path: Path
) -> None:
    put_lora(tmp_path / "loras" / "as trained.safetensors", "something else")

    assert store.find("lora", "as trained").name == "as trained"
    assert store.find("lora", "renamed").name == "renamed"


def test_an_alias_of_two_files_is_unknown_and_their_names_are_listed(
    store: ModelStore, tmp_path: Path
) -> None:
    put_lora(tmp_path / "loras" / "copy.safetensors", "as trained")

    with pytest.raises(UnknownLora, match="unknown LoRA 'as trained'; known: copy, renamed"):
        store.find("lora", "as trained")


@pytest.mark.parametrize("alias", ["None", "addams", ""])
def test_aliases_that_a1111_ignores_are_ignored(alias: str, tmp_path: Path) -> None:
    put_lora(tmp_path / "loras" / "style.safetensors", alias)

    with pytest.raises(UnknownLora):
        ModelStore(tmp_path).find("lora", alias)


def test_a_lora_requested_by_name_and_by_alias_is_one_lora(store: ModelStore) -> None:
    checkpoint = store.find("checkpoint", "demo")
    both = "<lora:renamed:0.5> <lora:as trained:0.5>"

    _, loras = find_loras(both, "", [LoRA(name="as trained", scale=0.5)], checkpoint, store)
    assert [(lora.file.name, lora.unet_scale) for lora in loras] == [("renamed", 0.5)]

    with pytest.raises(InvalidRequest, match=r"'renamed' is asked for twice, with scales 0\.5"):
        find_loras(both, "", [LoRA(name="as trained", scale=1.0)], checkpoint, store)
