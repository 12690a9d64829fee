"""Face restoration of generate and upscale jobs, through Redis, S3 and one worker.

The detector is the demo's trained one; restorer and parser are tiny untrained networks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imagefleet_producer import (
    CorruptFile,
    FaceRestore,
    FileUnavailable,
    GenerateRequest,
    InvalidRequest,
    Progress,
    UnknownFaceRestorer,
    UnknownUpscaler,
    UpscalePass,
    UpscaleRequest,
    read_parameters,
)
from tests.face_models import one_face, portrait, write_face_models
from tests.fleet import TestFleet

TIMEOUT_S = 120
DETECTOR = "faces/detection_mobilenet0.25_demo.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")


@pytest.fixture(scope="module")
def fleet_models(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces") / "models"
    copytree(demo_models, root)
    write_face_models(root)
    torch.save({"conv.weight": torch.zeros(1)}, root / "faces/other.pth")
    gfpgan = ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight")
    torch.save({name: torch.zeros(1) for name in gfpgan}, root / "faces/hollow.pth")
    return root


@pytest.fixture(autouse=True)
def _the_worker_keeps_serving(fleet: TestFleet) -> Iterator[None]:
    """Whatever the test does, the same worker process restores a face right after it."""
    before = worker_pids(fleet)
    yield
    picture, _ = portrait()
    [restored] = upscaled(fleet, picture)
    assert (np.asarray(restored) != np.asarray(picture)).any()
    assert worker_pids(fleet) == before


def worker_pids(fleet: TestFleet) -> list[str]:
    return re.findall(r"started, pid (\d+)", fleet.workers[0].log.read_text())


def upscaled(fleet: TestFleet, picture: Image.Image, **fields: object) -> list[Image.Image]:
    values = {"scale": 1, "upscaler": "lanczos", "face_restore": {"restorer": "tiny"}, **fields}
    values["images"] = [fleet.client.put_image(picture)]
    return fleet.client.upscale(UpscaleRequest.model_validate(values)).images(TIMEOUT_S)


def changed(one: Image.Image, other: Image.Image) -> np.ndarray:
    return (np.asarray(one) != np.asarray(other)).any(axis=2)


def test_an_upscale_job_restores_the_face_and_nothing_else(fleet: TestFleet) -> None:
    picture, face = portrait(400, seed=3)
    image = fleet.client.put_image(picture)
    request = UpscaleRequest(
        images=(image,), scale=1, face_restore=FaceRestore(restorer="tiny", visibility=0.5)
    )
    job = fleet.client.upscale(request)
    seen: list[Progress] = list(job.events(TIMEOUT_S))
    assert "faces" in [progress.stage for progress in seen]
    result = job.result(TIMEOUT_S)
    assert result.timings.stages_s["faces"] > 0
    [restored] = job.images(TIMEOUT_S)
    difference = changed(restored, picture)
    eyes = sum(face.landmarks[:2]) / 2
    assert difference[round(eyes.imag), round(eyes.real)]
    assert not difference[0].any()
    assert not difference[-1].any()
    assert 0.05 < difference.mean() < 0.95


def test_faces_restored_before_and_after_the_upscale_give_two_different_images(
    fleet: TestFleet,
) -> None:
    picture, _ = portrait()
    plain, before, after = (
        upscaled(fleet, picture, scale=2, face_restore=faces)[0]
        for faces in (
            None,
            {"restorer": "tiny"},
            {"restorer": "tiny", "after_upscale": True},
        )
    )
    assert plain.size == before.size == after.size == (512, 512)
    assert changed(before, plain).any()
    assert changed(after, plain).any()
    assert changed(before, after).any()


def test_an_image_without_a_face_is_returned_bit_for_bit(fleet: TestFleet) -> None:
    flat = Image.new("RGB", (130, 90), "teal")
    [result] = upscaled(fleet, flat)
    assert not changed(result, flat).any()
    assert "0 faces in 1 pictures" in fleet.workers[0].log.read_text()


def test_alpha_is_preserved_when_faces_are_restored(fleet: TestFleet) -> None:
    picture, _ = portrait()
    layered = picture.convert("RGBA")
    layered.putalpha(Image.linear_gradient("L").resize(picture.size))
    [restored] = upscaled(fleet, layered)
    assert restored.mode == "RGBA"
    assert not (np.asarray(restored)[..., 3] != np.asarray(layered)[..., 3]).any()
    assert changed(restored, layered).any()


@pytest.fixture
def _detect_a_face_anywhere(fleet_models: Path) -> Iterator[None]:
    """A detector that detects a face in any image: the test's checkpoint generates none."""
    path = fleet_models / "faces/detection_mobilenet0.25_Final.safetensors"
    save_file(one_face(), path)
    yield
    path.unlink()


@pytest.mark.usefixtures("_detect_a_face_anywhere")
def test_a_generate_job_restores_faces_inside_the_mask_only(fleet: TestFleet) -> None:
    picture, _ = portrait(256, seed=3)
    mask = Image.new("L", picture.size)
    mask.paste(255, (64, 64, 192, 192))
    put = fleet.client.put_image
    fields = {
        "prompt": "x",
        "num_inference_steps": 2,
        "seed": 1,
        "image": put(picture),
        "inpaint": {"mask_image": put(mask), "mask_blur": 0},
    }
    [plain], [restored], [large] = (
        fleet.client.generate(GenerateRequest.model_validate({**fields, **more})).images(TIMEOUT_S)
        for more in (
            {},
            {"face_restore": {"restorer": "tiny"}},
            {"face_restore": {"restorer": "tiny"}, "upscale": {"scale": 2}},
        )
    )
    outside = np.asarray(mask) == 0
    assert changed(restored, plain)[~outside].any()
    assert not changed(restored, picture)[outside].any()
    expected = restored.resize(large.size, Image.Resampling.LANCZOS)
    assert not changed(large, expected).any()


def test_the_infotext_has_the_face_restoration(fleet: TestFleet) -> None:
    faces = FaceRestore(restorer="tiny", visibility=0.5)
    request = GenerateRequest(prompt="x", num_inference_steps=1, face_restore=faces)
    [content] = fleet.client.generate(request).files(TIMEOUT_S)
    text = read_parameters(content) or ""
    assert "Face restoration: tiny" in text
    assert "Face restoration visibility: 0.5" in text


def test_models_lists_restorers_but_not_detectors_and_parsers(fleet: TestFleet) -> None:
    [worker] = fleet.client.workers()
    faces = [(model.name, model.forms) for model in worker.models if model.kind == "face"]
    assert faces == [("hollow", ("GFPGAN",)), ("tiny", ("RestoreFormer",))]
    assert not [model for model in worker.models if model.kind == "face_part"]


@pytest.mark.parametrize(
    ("faces", "error", "words"),
    [
        ({"restorer": "mona-lisa"}, UnknownFaceRestorer, "known: hollow, tiny"),
        ({"restorer": "parsing_parsenet"}, UnknownFaceRestorer, "known: hollow, tiny"),
        ({"restorer": "demo-x2"}, UnknownFaceRestorer, "known: hollow, tiny"),
        ({"restorer": "other"}, CorruptFile, "other.pth: none of GFPGAN"),
        ({"restorer": "hollow"}, CorruptFile, "hollow.pth"),
        ({"restorer": "hollow", "fidelity": 0.5}, InvalidRequest, "is GFPGAN: leave it out"),
    ],
)
def test_an_unusable_restorer_is_refused(
    fleet: TestFleet, faces: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        upscaled(fleet, portrait()[0], face_restore=faces)


def test_a_restorer_is_not_an_upscaler(fleet: TestFleet) -> None:
    request = GenerateRequest(
        prompt="x", num_inference_steps=1, upscale=UpscalePass(scale=2, upscaler="tiny")
    )
    with pytest.raises(UnknownUpscaler, match="'tiny'; known: demo-x2, demo-x4"):
        fleet.client.generate(request).result(TIMEOUT_S)


def test_a_missing_detector_fails_before_anything_is_generated(
    fleet: TestFleet, fleet_models: Path
) -> None:
    path = fleet_models / DETECTOR
    away = path.rename(fleet_models / "away")
    request = GenerateRequest(prompt="x", face_restore=FaceRestore(restorer="tiny"))
    job = fleet.client.generate(request)
    try:
        with pytest.raises(FileUnavailable, match=r"put detection_Resnet50_Final\.pth"):
            job.result(TIMEOUT_S)
    finally:
        away.rename(path)
    assert "denoise" not in [progress.stage for progress in job.events(TIMEOUT_S)]
