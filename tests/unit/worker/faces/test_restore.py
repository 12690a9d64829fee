"""Restoring the faces of pictures, by real networks of small size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from imagefleet_shared.errors import CorruptFile, JobCanceled
from imagefleet_shared.request_parts import FaceRestore
from imagefleet_shared.status import Stage
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.faces.align import align
from imagefleet_worker.faces.detect import detect
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.resolved import ResolvedFaces, resolve_faces
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.progress import BatchCanceled, BatchProgress
from tests.face_models import model_store, one_label, portrait

CPU = torch.device("cpu")


class RecordedProgress:
    """Records progress reports; optionally cancels the job at a step."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.reports: list[tuple[Stage, int, int]] = []
        self._cancel_at = cancel_at
        self.progress = BatchProgress([self._report])

    def _report(self, stage: Stage, step: int, steps: int) -> None:
        self.reports.append((stage, step, steps))
        if step == self._cancel_at:
            raise JobCanceled("job")


@pytest.fixture(scope="module")
def restorer() -> FaceRestorer:
    return FaceRestorer(FaceNetworks(CPU, 10**9))


def resolved(store: ModelStore, **fields: object) -> ResolvedFaces:
    return resolve_faces(FaceRestore.model_validate({"restorer": "tiny", **fields}), store)


def restore(
    restorer: FaceRestorer, picture: Image.Image, faces: ResolvedFaces
) -> NDArray[np.int16]:
    [result] = restorer.restore([picture], faces, RecordedProgress().progress)
    assert result.size == picture.size
    return np.asarray(result).astype(np.int16)


def test_a_face_is_restored_and_pixels_outside_it_are_bitwise_unchanged(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    picture, drawn = portrait()
    picture = ImageOps.expand(picture, 100, "teal")
    faces = resolved(face_store)
    result = restore(restorer, picture, faces)
    changed = (result != np.asarray(picture)).any(axis=2)
    eyes = sum(drawn.landmarks[:2]) / 2 + 100 + 100j
    assert changed[round(eyes.imag), round(eyes.real)]
    [face] = detect(FaceNetworks(CPU, 10**9).detector(faces.detector), CPU, picture)
    alignment = align(face.landmarks, *picture.size)
    assert alignment is not None
    left, top, right, bottom = alignment.region
    assert 0 < left < right < picture.width, "the face does not fill the picture"
    outside = np.ones_like(changed)
    outside[top:bottom, left:right] = False
    assert outside.any()
    assert not changed[outside].any()
    # The parser labels all as skin: all of the aligned square but its border is restored.
    assert changed[top:bottom, left:right].mean() > 0.4


def test_visibility_is_the_share_of_the_restored_face(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    picture, _ = portrait()
    before = np.asarray(picture).astype(np.int16)
    whole = restore(restorer, picture, resolved(face_store)) - before
    part = restore(restorer, picture, resolved(face_store, visibility=0.25)) - before
    assert np.abs(part - 0.25 * whole).max() <= 1
    assert np.abs(whole).max() > 40


def test_overlapping_faces_are_blended_with_the_original_once(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    """Each used to be blended with the one before: two at 0.5 were three quarters visible."""
    single, drawn = portrait()
    left, _, right, _ = (round(side) for side in drawn.box)
    single = single.crop((left - 20, 0, right + 20, single.height))
    picture = Image.new("RGB", (2 * single.width, single.height))
    for index in range(2):
        picture.paste(single, (index * single.width, 0))
    faces = resolved(face_store, visibility=0.5)
    found = detect(FaceNetworks(CPU, 10**9).detector(faces.detector), CPU, picture)
    regions = [
        alignment.region for face in found if (alignment := align(face.landmarks, *picture.size))
    ]
    assert len(regions) == 2
    assert max(region[0] for region in regions) < min(region[2] for region in regions) - 20
    before = np.asarray(picture).astype(np.int16)
    whole = restore(restorer, picture, resolved(face_store)) - before
    half = restore(restorer, picture, faces) - before
    assert np.abs(half - 0.5 * whole).max() <= 1


def test_pixels_outside_the_parsers_mask_are_unchanged(
    restorer: FaceRestorer, tmp_path: Path
) -> None:
    """With a parser that labels everything as cloth, the picture is unchanged."""
    store = model_store(tmp_path)
    save_file(one_label(18), tmp_path / "faces/parsing_parsenet.safetensors")
    picture, _ = portrait()
    assert (restore(restorer, picture, resolved(store)) == np.asarray(picture)).all()


def test_a_picture_without_faces_is_returned_as_is(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    recorded = RecordedProgress()
    flat = Image.new("RGB", (200, 200), "teal")
    deep = Image.fromarray(np.full((200, 200), 30_000, dtype=np.uint16))
    results = restorer.restore([flat, deep], resolved(face_store), recorded.progress)
    assert results[0] is flat
    assert results[1] is deep
    assert recorded.reports == [("faces", 0, 0)]


def test_progress_counts_the_faces_of_all_pictures_together(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    recorded = RecordedProgress()
    flat = Image.new("RGB", (200, 200), "teal")
    pictures = [portrait(seed=1)[0], flat, portrait(seed=3)[0]]
    results = restorer.restore(pictures, resolved(face_store), recorded.progress)
    assert [result is picture for result, picture in zip(results, pictures, strict=True)] == [
        *(False, True, False),
    ]
    assert recorded.reports == [("faces", 0, 0), ("faces", 0, 2), ("faces", 1, 2), ("faces", 2, 2)]


def test_a_job_is_canceled_between_faces_and_the_next_one_is_correct(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    pictures = [portrait(seed=1)[0], portrait(seed=3)[0]]
    faces = resolved(face_store)
    expected = restore(restorer, pictures[1], faces)
    recorded = RecordedProgress(cancel_at=1)
    with pytest.raises(BatchCanceled):
        restorer.restore(pictures, faces, recorded.progress)
    assert recorded.reports[-1] == ("faces", 1, 2)
    assert (restore(restorer, pictures[1], faces) == expected).all()


def test_the_visible_part_of_a_face_at_the_edge_is_restored(
    restorer: FaceRestorer, face_store: ModelStore
) -> None:
    picture, drawn = portrait()
    cut = picture.crop((int(drawn.box[0]) + 10, 0, picture.width, picture.height))
    result = restore(restorer, cut, resolved(face_store))
    changed = (result != np.asarray(cut)).any(axis=2)
    assert changed[:, 0].any()
    assert not changed[:, -1].any()


def test_a_network_that_outputs_nan_is_a_corrupt_file(tmp_path: Path) -> None:
    store = model_store(tmp_path)
    path = tmp_path / "faces/tiny.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"][0] = float("nan")
    save_file(weights, path)
    with pytest.raises(CorruptFile, match="face restorer tiny: its output is not finite"):
        restore(FaceRestorer(FaceNetworks(CPU, 10**9)), portrait()[0], resolved(store))


def test_networks_are_cached_until_their_file_changes(tmp_path: Path) -> None:
    store = model_store(tmp_path)
    networks = FaceNetworks(CPU, 10**9)
    file = resolved(store).restorer
    first = networks.restorer(file)
    assert networks.restorer(resolved(store).restorer) is first
    path = tmp_path / "faces/tiny.safetensors"
    weights = load_file(path)
    save_file({name: each + 0 for name, each in weights.items()}, path)
    changed = resolved(store).restorer
    assert networks.restorer(changed) is not first
    small = FaceNetworks(CPU, 10)
    assert small.restorer(replace(file)) is not small.restorer(file)
