"""Small face networks, and pictures of drawn faces, for tests."""

from itertools import count
from pathlib import Path
from random import Random
from shutil import copy

import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.RestoreFormer import RestoreFormer
from torch import Tensor

from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.faces.align import FACE_PX, TEMPLATE
from imagefleet_worker.faces.parsenet import ParseNet
from imagefleet_worker.faces.retinaface import RetinaFace
from tools.training.faces import DrawnFace, draw_faces

DEMO_DETECTOR = (
    Path(__file__).parents[1] / "worker/models/faces/detection_mobilenet0.25_demo.safetensors"
)
SKIN = 1
"""ParseNet's label for skin."""


def write_face_models(models: Path) -> None:
    """Write a restorer `tiny` with random weights, a parser that labels everything as skin, and
    the demo's detector."""
    faces = models / "faces"
    faces.mkdir(parents=True)
    torch.manual_seed(0)
    network = RestoreFormer(
        n_embed=16, embed_dim=32, ch=32, ch_mult=(1,) * 6, num_res_blocks=1, z_channels=32
    )
    save_file(network.state_dict(), faces / "tiny.safetensors")
    save_file(one_label(SKIN), faces / "parsing_parsenet.safetensors")
    copy(DEMO_DETECTOR, faces)


def one_label(label: int) -> dict[str, Tensor]:
    """Weights of a parser that gives every pixel the same label."""
    weights = {name: torch.zeros_like(each) for name, each in ParseNet().state_dict().items()}
    for name, each in weights.items():
        if name.endswith("running_var"):
            each.fill_(1)
    weights["out_mask_conv.conv2d.bias"][label] = 1
    return weights


def one_face() -> dict[str, Tensor]:
    """Weights of a detector that finds one face which fills the picture, in any square picture.

    All anchors of 512 pixels are faces, so large that non-maximum suppression keeps only the first.
    """
    weights = {
        name: torch.zeros_like(each)
        for name, each in RetinaFace("mobilenet0.25").state_dict().items()
    }
    for name, each in weights.items():
        if name.endswith("running_var"):
            each.fill_(1)
    no, yes = [9.0, -9, 9, -9], [9.0, -9, -9, 9]
    for level, scores in enumerate((no, no, yes)):
        weights[f"ClassHead.{level}.conv1x1.bias"] = torch.tensor(scores)
    weights["BboxHead.2.conv1x1.bias"] = torch.tensor([0.0, 0, 15, 15]).repeat(2)
    # The first anchor's centre is at (16, 16) in the network's input of 640 x 640 pixels.
    landmarks = [(mark * 640 / FACE_PX - (16 + 16j)) / (0.1 * 512) for mark in TEMPLATE]
    offsets = torch.tensor([part for mark in landmarks for part in (mark.real, mark.imag)])
    weights["LandmarkHead.2.conv1x1.bias"] = offsets.repeat(2)
    return weights


def portrait(side_px: int = 256, seed: int = 1) -> tuple[Image.Image, DrawnFace]:
    """A picture of one drawn face of half its height, with a margin on all sides."""
    margin = side_px / 8
    for attempt in count():
        random = Random(f"portrait {seed} {attempt}")
        picture, [face] = draw_faces(random, side_px, side_px, (side_px / 2,))
        if min(face.box) > margin and max(face.box) < side_px - margin:
            return picture, face
    raise AssertionError


def model_store(folder: Path) -> ModelStore:
    """A store with the models of `write_face_models`."""
    write_face_models(folder)
    return ModelStore(folder)
