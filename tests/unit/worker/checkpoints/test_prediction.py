"""The prediction type and zero terminal SNR of checkpoints reach the scheduler's config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.checkpoints.diffusers_folder import load_diffusers_folder
from imagefleet_worker.checkpoints.prediction import prediction_config
from imagefleet_worker.checkpoints.single_file import load_single_file
from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.safetensors_header import Header, TensorEntry
from tools.make_demo_checkpoint import write_demo_checkpoint

CPU = torch.device("cpu")
FAMILIES: tuple[Family, ...] = ("sd1", "sdxl")
TYPE = "modelspec.prediction_type"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        write_demo_checkpoint(root / f"{family}.safetensors", family, seed=0)
    return {family: root / f"{family}.safetensors" for family in FAMILIES}


@pytest.fixture(scope="module")
def folder(checkpoints: dict[Family, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    load_single_file(checkpoints["sdxl"], CPU, torch.float32).pipeline.save_pretrained(folder)
    return folder


def header(markers: tuple[str, ...], metadata: Mapping[str, str]) -> Header:
    entry = TensorEntry(dtype="F32", shape=(0,), data_offsets=(0, 0))
    return Header(file_name="x", tensors=dict.fromkeys(markers, entry), metadata=metadata)


@pytest.mark.parametrize(
    ("markers", "metadata", "prediction", "zero_snr"),
    [
        ((), {}, "epsilon", False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        (("ztsnr",), {}, "epsilon", True),
        ((), {TYPE: "v"}, "v_prediction", False),
        ((), {TYPE: "V_prediction"}, "v_prediction", False),
        ((), {TYPE: "epsilon"}, "epsilon", False),
        ((), {"modelspec.predict_key": "v"}, "v_prediction", False),
        (("v_pred",), {TYPE: "epsilon"}, "v_prediction", False),
        (("ztsnr",), {TYPE: "v"}, "v_prediction", True),
    ],
)
def test_markers_and_metadata_determine_the_prediction_type(
    markers: tuple[str, ...], metadata: dict[str, str], prediction: str, zero_snr: bool
) -> None:
    assert prediction_config(header(markers, metadata)) == {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_with_markers_configures_the_scheduler(
    family: Family, checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    """Empty tensors, as ComfyUI and NoobAI write them."""
    marked = tmp_path / "marked.safetensors"
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**load_file(checkpoints[family]), **markers}, marked)

    scheduler = load_single_file(marked, CPU, torch.float32).pipeline.scheduler

    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["rescale_betas_zero_snr"] is True
    euler: Any = EulerDiscreteScheduler.from_config(scheduler.config)
    assert euler.sigmas[0] > 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_without_markers_predicts_epsilon(
    family: Family, checkpoints: dict[Family, Path]
) -> None:
    config = load_single_file(checkpoints[family], CPU, torch.float32).pipeline.scheduler.config

    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("epsilon", False)


def configure(folder: Path, scheduler: str, change: Mapping[str, object]) -> None:
    """Set the folder's scheduler class and settings; settings of None are removed."""
    change_json(folder / "model_index.json", {"scheduler": ["diffusers", scheduler]})
    change_json(folder / "scheduler/scheduler_config.json", {"_class_name": scheduler, **change})


def change_json(path: Path, change: Mapping[str, object]) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **change}
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("scheduler", "change", "expected"),
    [
        (
            "EulerDiscreteScheduler",
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            ("v_prediction", True),
        ),
        (
            "EulerDiscreteScheduler",
            {"prediction_type": None, "rescale_betas_zero_snr": None},
            ("epsilon", False),
        ),
        # It has no rescale_betas_zero_snr.
        (
            "PNDMScheduler",
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": None},
            ("v_prediction", False),
        ),
    ],
)
def test_a_folders_scheduler_config_is_read_and_completed(
    scheduler: str, change: dict[str, object], expected: tuple[str, bool], folder: Path
) -> None:
    configure(folder, scheduler, change)
    config = load_diffusers_folder(folder, CPU, torch.float32).pipeline.scheduler.config

    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == expected


def test_a_folder_with_an_unsupported_noise_schedule_is_refused(folder: Path) -> None:
    configure(folder, "EulerDiscreteScheduler", {"prediction_type": "sample"})
    with pytest.raises(CorruptFile, match="predicts 'sample'; supported are schedules of betas"):
        load_diffusers_folder(folder, CPU, torch.float32)

    betas = ("beta_schedule", "beta_start", "beta_end")
    configure(folder, "EDMEulerScheduler", {"prediction_type": "epsilon", **dict.fromkeys(betas)})
    with pytest.raises(CorruptFile, match="has a EDMEulerScheduler"):
        load_diffusers_folder(folder, CPU, torch.float32)
