"""Loading upscaler files: detected by content, refused by name, never executed."""

import pickle
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN

from imagefleet_shared.errors import CorruptFile, FileUnavailable
from imagefleet_worker.upscale.load import load_upscaler
from tests.architectures import random_weights
from tools.make_demo_upscaler import make_demo_upscaler

# spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process. Its extra
# architectures call torch.jit.script at import.
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.meshgrid:UserWarning", "ignore:.torch.jit.script:FutureWarning"
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_pytorch_files_are_detected_by_their_first_bytes(
    tmp_path: Path, suffix: str, zipped: bool
) -> None:
    weights = make_demo_upscaler(2, seed=2)
    path = tmp_path / f"demo{suffix}"
    torch.save({"params_ema": weights}, path, _use_new_zipfile_serialization=zipped)
    upscaler = load_upscaler(path, CPU, torch.float32)
    assert (upscaler.name, upscaler.scale) == ("demo", 2)


def test_safetensors_files_are_detected_by_their_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "demo.pth"
    save_file(make_demo_upscaler(4, seed=2), path)
    assert load_upscaler(path, CPU, torch.float32).scale == 4


class TouchOnUnpickle:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "trap.pth"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"weight": TouchOnUnpickle(marker)}, protocol=2))
    else:
        torch.save(
            {"weight": TouchOnUnpickle(marker)}, path, _use_new_zipfile_serialization=kind == "zip"
        )
    with pytest.raises(CorruptFile, match=r"trap\.pth") as caught:
        load_upscaler(path, CPU, torch.float32)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value)


def broken_files(tmp_path: Path) -> dict[str, bytes]:
    whole_file, zipped = tmp_path / "whole", tmp_path / "zipped"
    save_file(make_demo_upscaler(2, seed=2), whole_file)
    torch.save(make_demo_upscaler(2, seed=2), zipped)
    return {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "short safetensors": whole_file.read_bytes()[:-100],
        "short zip": zipped.read_bytes()[:-1000],
        "zip's first bytes": b"PK\x03\x04 and no more",
        "pickle's first bytes": b"\x80\x02 and no more",
        "huge header": b"\xff\xff\xff\xff\xff\xff\xff\x7f{",
    }


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    for what, content in broken_files(tmp_path).items():
        path = tmp_path / f"{what}.pth"
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=re.escape(path.name)):
            load_upscaler(path, CPU, torch.float32)


def test_a_missing_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailable, match=r"none\.pth"):
        load_upscaler(tmp_path / "none.pth", CPU, torch.float32)


def test_extra_architectures_are_loaded_if_installed(tmp_path: Path) -> None:
    for name, scale in (("srformer", 2), ("restormer", 1)):
        path = tmp_path / f"{name}.pth"
        torch.save({"params": random_weights(name)}, path)
        assert load_upscaler(path, CPU, torch.float32).scale == scale


def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "srformer.pth"
    torch.save({"params": random_weights("srformer")}, path)
    found = find_spec("spandrel_extra_arches")
    assert found
    folder = Path(found.origin or "").parents[1].resolve()
    hidden = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    for name in [name for name in sys.modules if name.startswith("spandrel_extra_arches")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", hidden)
    with pytest.raises(CorruptFile, match=r"SRFormer, which needs imagefleet-worker\[extra-arches"):
        load_upscaler(path, CPU, torch.float32)


def test_a_file_that_is_not_an_rgb_upscaler_is_refused_with_a_description(tmp_path: Path) -> None:
    grey = ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1, scale=2).state_dict()
    missing = make_demo_upscaler(2, seed=2)
    del missing["conv_first.bias"]
    files: dict[str, tuple[object, str]] = {
        "grey": (grey, "1 to 1 channels"),
        "unknown": ({"some.weight": torch.zeros(3)}, "some.weight"),
        "incomplete": (missing, "conv_first.bias"),
        "tensor": (torch.zeros(3), "Tensor"),
    }
    for name, (content, description) in files.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(CorruptFile, match=re.escape(f"{name}.pth")) as caught:
            load_upscaler(path, CPU, torch.float32)
        assert description in str(caught.value)
