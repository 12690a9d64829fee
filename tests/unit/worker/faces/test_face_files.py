"""Face model files: listing, detecting their architecture, refusing bad ones before the device."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefleet_shared.errors import (
    CorruptFile,
    FileUnavailable,
    InvalidRequest,
    UnknownFaceRestorer,
    WorkerFailure,
)
from imagefleet_shared.request_parts import FaceRestore
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.resolved import resolve_faces
from imagefleet_worker.weights.face_architecture import read_architecture

GFPGAN = ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight")
RESTOREFORMER = ("quantize.embedding.weight", "quant_conv.weight", "encoder.conv_in.weight")
CODEFORMER = ("quantize.embedding.weight", "position_emb", "idx_pred_layer.1.weight")


def write(path: Path, names: tuple[str, ...] = GFPGAN, *, wrapped: bool = False) -> Path:
    """Write a file with the names of a network's tensors, all of them zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: torch.zeros(1) for name in names}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"params_ema": weights} if wrapped else weights, path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A1111's folders and file names."""
    write(tmp_path / "GFPGAN/GFPGANv1.4.pth", wrapped=True)
    write(tmp_path / "Codeformer/codeformer-v0.1.0.pth", CODEFORMER, wrapped=True)
    for part in ("detection_Resnet50_Final.pth", "parsing_parsenet.pth"):
        write(tmp_path / "GFPGAN" / part, ("body",))
    return ModelStore(tmp_path)


def resolve(store: ModelStore, restorer: str, **fields: object) -> list[str]:
    resolved = resolve_faces(FaceRestore.model_validate({"restorer": restorer, **fields}), store)
    return [each.name for each in (resolved.restorer, resolved.detector, resolved.parser)]


def test_a1111s_folders_are_read_as_they_are(store: ModelStore) -> None:
    parts = ["detection_Resnet50_Final", "parsing_parsenet"]
    assert resolve(store, "GFPGANv1.4") == ["GFPGANv1.4", *parts]
    assert resolve(store, "codeformer-v0.1.0", fidelity=0.7)[0] == "codeformer-v0.1.0"


def test_only_restorers_are_listed_with_their_architecture(
    store: ModelStore,
) -> None:
    listed = [
        (file.name, file.metadata and file.metadata.forms) for file in store.list_models("face")
    ]
    assert listed == [("GFPGANv1.4", ("GFPGAN",)), ("codeformer-v0.1.0", ("CodeFormer",))]
    assert store.list_models("upscaler") == ()


@pytest.mark.parametrize("name", ["detection_Resnet50_Final", "parsing_parsenet", "mona-lisa"])
def test_detector_and_parser_are_not_restorers(store: ModelStore, name: str) -> None:
    with pytest.raises(UnknownFaceRestorer) as caught:
        resolve(store, name)
    assert str(caught.value) == (
        f"unknown face restorer '{name}'; known: GFPGANv1.4, codeformer-v0.1.0"
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("detection_Resnet50_Final", "no face detector: put detection_Resnet50_Final.pth, once"),
        ("parsing_parsenet", "no face parser: put parsing_parsenet.pth, once"),
    ],
)
def test_a_missing_detector_or_parser_names_the_file_and_its_folder(
    store: ModelStore, tmp_path: Path, missing: str, message: str
) -> None:
    (tmp_path / f"GFPGAN/{missing}.pth").unlink()
    with pytest.raises(FileUnavailable, match=message) as caught:
        resolve(store, "GFPGANv1.4")
    assert "folder faces or GFPGAN" in str(caught.value)
    assert "facexlib" in str(caught.value)


def test_a1111s_detector_is_preferred(store: ModelStore, tmp_path: Path) -> None:
    for name in ("detection_mobilenet0.25_demo", "detection_mobilenet0.25_Final"):
        write(tmp_path / f"faces/{name}.safetensors", ("body",))
    assert resolve(store, "GFPGANv1.4")[1] == "detection_Resnet50_Final"
    (tmp_path / "GFPGAN/detection_Resnet50_Final.pth").unlink()
    assert resolve(store, "GFPGANv1.4")[1] == "detection_mobilenet0.25_Final"


def test_fidelity_is_refused_for_other_networks_than_codeformer(store: ModelStore) -> None:
    with pytest.raises(InvalidRequest, match=r"fidelity 0\.7 .* 'GFPGANv1\.4' is GFPGAN"):
        resolve(store, "GFPGANv1.4", fidelity=0.7)


def test_codeformer_without_its_package_names_the_extra(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spandrel_extra_arches", None)
    with pytest.raises(WorkerFailure, match=r"non-commercial use, which needs .*\[extra-arches\]"):
        resolve(store, "codeformer-v0.1.0")
    assert resolve(store, "GFPGANv1.4")[0] == "GFPGANv1.4"


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("names", "architecture"),
    [(GFPGAN, "GFPGAN"), (RESTOREFORMER, "RestoreFormer"), (CODEFORMER, "CodeFormer")],
)
def test_the_architecture_is_detected_by_tensor_names(
    tmp_path: Path, names: tuple[str, ...], architecture: str, suffix: str
) -> None:
    assert read_architecture(write(tmp_path / f"a.{suffix}", names)) == architecture


def test_pytorchs_legacy_format_is_read(tmp_path: Path) -> None:
    weights = {name: torch.zeros(1) for name in GFPGAN}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_architecture(tmp_path / "old.pth") == "GFPGAN"


def test_an_upscaler_in_the_faces_folder_is_not_listed_and_is_refused(
    store: ModelStore, tmp_path: Path
) -> None:
    write(tmp_path / "faces/swin.pth", ("conv_first.weight", "layers.0"))
    assert "swin" not in [file.name for file in store.list_models("face")]
    with pytest.raises(CorruptFile, match=r"swin\.pth: none of GFPGAN, RestoreFormer, CodeFormer"):
        resolve(store, "swin")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x80\x02rubbish", b"8" * 99])
def test_a_damaged_file_is_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"a\.pth"):
        read_architecture(path)


def test_a_pickle_with_python_objects_is_refused(tmp_path: Path) -> None:
    torch.save({"toRGB.0.weight": Path("x")}, tmp_path / "a.pth")
    with pytest.raises(CorruptFile, match=r"a\.pth"):
        read_architecture(tmp_path / "a.pth")


def test_a_detector_or_parser_with_other_weights_is_corrupt(store: ModelStore) -> None:
    networks = FaceNetworks(torch.device("cpu"), 10**9)
    parts = {file.name: file for file in store.list_models("face_part")}
    with pytest.raises(CorruptFile, match=r"detection_Resnet50_Final\.pth: not the network"):
        networks.detector(parts["detection_Resnet50_Final"])
    with pytest.raises(CorruptFile, match=r"parsing_parsenet\.pth: not the network"):
        networks.parser(parts["parsing_parsenet"])
