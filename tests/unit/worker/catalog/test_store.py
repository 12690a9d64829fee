"""The model store finds files by name, and nothing outside its folder."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefleet_shared.errors import (
    CorruptFile,
    FileUnavailable,
    UnknownCheckpoint,
    UnknownUpscaler,
    WorkerFailure,
)
from imagefleet_worker.catalog.store import ModelStore

SD1_KEYS = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
)
SDXL_KEYS = (SD1_KEYS[0], "conditioner.embedders.1.model.ln_final.weight")


def put_checkpoint(path: Path, keys: tuple[str, ...] = SD1_KEYS) -> Path:
    """Write a file with a checkpoint's header, which is all that the store reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.zeros(1, 4, 1, 1) for key in keys}, path)
    return path


def put_file(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_our_folder_names_and_a1111s_are_searched(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints" / "ours.safetensors")
    put_checkpoint(tmp_path / "Stable-diffusion" / "anime" / "theirs.safetensors", SDXL_KEYS)
    for number, folder in enumerate(["upscalers", "SwinIR", "ESRGAN", "RealESRGAN"]):
        put_file(tmp_path / folder / f"up{number}.pth")
    put_file(tmp_path / "Lora" / "style.safetensors")
    store = ModelStore(tmp_path)

    assert [(file.name, file.family) for file in store.list_models("checkpoint")] == [
        ("ours", "sd1"),
        ("theirs", "sdxl"),
    ]
    assert [file.name for file in store.list_models("upscaler")] == ["up0", "up1", "up2", "up3"]


def test_a_model_is_found_by_its_name(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path / "checkpoints" / "sub" / "v1.5 pruned.safetensors")
    file = ModelStore(tmp_path).find("checkpoint", "v1.5 pruned")

    assert (file.path, file.kind, file.family) == (path.resolve(), "checkpoint", "sd1")
    assert file.size_bytes == path.stat().st_size


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints" / "a.safetensors")
    put_file(tmp_path / "upscalers" / "b.pth")

    with pytest.raises(UnknownCheckpoint, match="unknown checkpoint 'b'; known: a"):
        ModelStore(tmp_path).find("checkpoint", "b")
    with pytest.raises(UnknownUpscaler, match="unknown upscaler 'a'; known: b"):
        ModelStore(tmp_path).find("upscaler", "a")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        "sub/model",
        "/etc/passwd",
        "sub\\model",
        "C:model",
        "model\0",
        "checkpoints/../../secret",
        "",
        ".",
    ],
)
def test_a_name_that_could_be_a_path_is_unknown(name: str, tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "secret.safetensors")
    put_checkpoint(tmp_path / "models" / "checkpoints" / "sub" / "model.safetensors")
    store = ModelStore(tmp_path / "models")

    with pytest.raises(UnknownCheckpoint):
        store.find("checkpoint", name)
    with pytest.raises(UnknownUpscaler):
        store.find("upscaler", name)


def test_links_that_lead_out_of_the_folder_are_ignored(tmp_path: Path) -> None:
    outside = put_checkpoint(tmp_path / "outside" / "secret.safetensors")
    root = tmp_path / "models"
    inside = put_checkpoint(root / "checkpoints" / "kept.safetensors")
    (root / "checkpoints" / "leak.safetensors").symlink_to(outside)
    (root / "checkpoints" / "folder").symlink_to(outside.parent)
    (root / "checkpoints" / "loop").symlink_to(root)
    (root / "checkpoints" / "again.safetensors").symlink_to(inside)
    (root / "Stable-diffusion").symlink_to(outside.parent)

    assert [file.path for file in ModelStore(root).list_models("checkpoint")] == [inside.resolve()]


def test_two_files_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints" / "a.safetensors")
    put_checkpoint(tmp_path / "Stable-diffusion" / "x" / "a.safetensors")
    put_checkpoint(tmp_path / "checkpoints" / "b.safetensors")
    store = ModelStore(tmp_path)

    with pytest.raises(
        WorkerFailure, match=r"Stable-diffusion/x/a\.safetensors and checkpoints/a\."
    ):
        store.find("checkpoint", "a")
    assert [file.name for file in store.list_models("checkpoint")] == ["b"]


def test_a_pickled_checkpoint_is_refused_with_conversion_instructions(
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoints" / "old.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    store = ModelStore(tmp_path)

    assert store.list_models("checkpoint") == ()
    with pytest.raises(CorruptFile, match=r"(?s)old\.ckpt is a pickle.*save_file"):
        store.find("checkpoint", "old")


def test_a_converted_checkpoint_may_be_beside_its_pickle(tmp_path: Path) -> None:
    converted = put_checkpoint(tmp_path / "checkpoints" / "model.safetensors")
    put_file(tmp_path / "checkpoints" / "model.ckpt", b"PK\x03\x04 and so on")

    assert ModelStore(tmp_path).find("checkpoint", "model").path == converted.resolve()


def test_the_first_bytes_determine_the_format_not_the_suffix(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints" / "renamed.ckpt")
    put_file(tmp_path / "checkpoints" / "fake.safetensors", b"PK\x03\x04 and so on")
    store = ModelStore(tmp_path)

    assert store.find("checkpoint", "renamed").family == "sd1"
    with pytest.raises(CorruptFile, match="is a pickle"):
        store.find("checkpoint", "fake")


def test_a_lora_among_the_checkpoints_is_left_out_and_refused(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints" / "style.safetensors", ("lora_unet_x.lora_up.weight",))
    store = ModelStore(tmp_path)

    assert store.list_models("checkpoint") == ()
    with pytest.raises(CorruptFile, match="looks like a LoRA"):
        store.find("checkpoint", "style")


def test_a_diffusers_folder_is_one_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "turbo"
    put_file(folder / "model_index.json", b'{"_class_name": "StableDiffusionXLPipeline"}')
    put_file(folder / "unet" / "diffusion_pytorch_model.safetensors", b"12345")
    file = ModelStore(tmp_path).find("checkpoint", "turbo")

    assert (file.path, file.family, file.size_bytes) == (folder.resolve(), "sdxl", 5)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "is for FluxPipeline; supported are"),
        (
            {"_class_name": "StableDiffusionPipeline", "unet": ["os", "system"]},
            "asks for code from",
        ),
        ([], "is damaged"),
    ],
)
def test_a_diffusers_folder_of_another_kind_is_refused(
    index: object, message: str, tmp_path: Path
) -> None:
    text = json.dumps(index).encode()
    put_file(tmp_path / "checkpoints" / "other" / "model_index.json", text)

    with pytest.raises(CorruptFile, match=message):
        ModelStore(tmp_path).find("checkpoint", "other")


def test_hidden_files_and_half_copied_ones_are_left_out(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints" / ".hidden.safetensors")
    put_checkpoint(tmp_path / "checkpoints" / ".cache" / "model.safetensors")
    put_file(tmp_path / "checkpoints" / "copying.safetensors.part")

    assert ModelStore(tmp_path).list_models("checkpoint") == ()


def test_a_missing_folder_raises_file_unavailable(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailable, match=r"the model folder .*gone cannot be read"):
        ModelStore(tmp_path / "gone").list_models("checkpoint")


def test_the_hash_is_cached_until_the_file_changes(tmp_path: Path) -> None:
    path = put_file(tmp_path / "upscalers" / "a.pth", b"first")
    store = ModelStore(tmp_path)
    file = store.find("upscaler", "a")
    first = store.sha256(file)
    assert first == hashlib.sha256(b"first").hexdigest()

    times = (file.modified_ns, file.modified_ns)
    path.write_bytes(b"other")
    os.utime(path, ns=times)
    assert store.sha256(store.find("upscaler", "a")) == first

    os.utime(path, ns=(times[0] + 1, times[1] + 1))
    assert store.sha256(store.find("upscaler", "a")) == hashlib.sha256(b"other").hexdigest()


def test_a_file_that_was_replaced_is_another_model(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path / "checkpoints" / "a.safetensors")
    store = ModelStore(tmp_path)
    before = store.find("checkpoint", "a")
    assert store.find("checkpoint", "a") == before

    put_checkpoint(path, SDXL_KEYS)
    after = store.find("checkpoint", "a")
    assert after != before
    assert after.family == "sdxl"
