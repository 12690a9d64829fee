"""Train the demo's face detector, RetinaFace on a quarter of MobileNet, on drawn faces.

    python -m tools.training.train_face_detector /tmp/demo-training worker/models

Seeded. Targets and losses are those of RetinaFace (arXiv 1905.00641, section 3.1) without its dense
regression, and with more weight on landmarks.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.ops import box_iou

from imagefleet_worker.faces.anchors import anchors, encode_boxes, encode_points
from imagefleet_worker.faces.detect import to_detector_range
from imagefleet_worker.faces.retinaface import RetinaFace
from tools.training.faces import DrawnFace, draw_faces
from tools.training.loop import Plan, device, train

PLAN = Plan(steps=3000, learning_rate=2e-3, ema=0.99)
_SEED = 4
_MATCH = 0.35
_NEGATIVES = 7
"""For each anchor with a face, so many of the hardest without."""
_KINDS = (
    *((320, 320, 8, 24, 300), (320, 320, 8, 24, 120)),
    *((640, 640, 2, 160, 600), (200, 640, 2, 40, 180)),
)
"""Of the pictures of a step: the side as drawn, and as seen, how many, and heights of faces, px."""
_SETTLING = 40


def batch(step: int) -> tuple[Tensor, list[list[DrawnFace]]]:
    """A step's pictures, `(B, 3, side, side)` as the network takes them, and their faces."""
    random = Random(f"{_SEED} {step}")
    side, seen, count, least, most = _KINDS[step % len(_KINDS)]
    pictures: list[Tensor] = []
    faces: list[list[DrawnFace]] = []
    for _ in range(count):
        sizes = [
            least * (most / least) ** random.random() for _ in range(random.choice((0, 1, 2, 4)))
        ]
        picture, own = draw_faces(random, side, side, tuple(sizes))
        picture = picture.resize((seen, seen), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        pictures.append(to_detector_range(pixels))
        faces.append([face.scaled(seen / side) for face in own])
    return torch.cat(pictures), faces


def targets(faces: list[DrawnFace], places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors `(A,)` have a face, and what those should tell: `(P, 4)` and `(P, 10)`."""
    if not faces:
        return torch.zeros(len(places), dtype=torch.bool), torch.zeros(0, 4), torch.zeros(0, 10)
    boxes = torch.tensor([face.box for face in faces], dtype=torch.float32)
    points = torch.tensor([[[z.real, z.imag] for z in face.landmarks] for face in faces]).float()
    corners = torch.cat([places[:, :2] - places[:, 2:] / 2, places[:, :2] + places[:, 2:] / 2], 1)
    overlap = box_iou(corners, boxes)
    # Every face has one anchor at least, its best.
    overlap[overlap.argmax(dim=0), torch.arange(len(faces))] = 2
    best, owner = overlap.max(dim=1)
    chosen = best > _MATCH
    own = owner[chosen]
    return (
        chosen,
        encode_boxes(boxes[own], places[chosen]),
        encode_points(points[own], places[chosen]),
    )


def loss_of(network: RetinaFace, step: int) -> Tensor:
    pictures, faces = batch(step)
    side = pictures.shape[-1]
    places = anchors(side, side)
    to = next(network.parameters()).device
    offsets, logits, points = network(pictures.to(to))
    total, found = torch.zeros((), device=to), 0
    for place, own in enumerate(faces):
        chosen, boxes, marks = (each.to(to) for each in targets(own, places))
        count = int(chosen.sum())
        found += count
        total = total + 2 * smooth_l1_loss(offsets[place][chosen], boxes, reduction="sum")
        total = total + 3 * smooth_l1_loss(points[place][chosen], marks, reduction="sum")
        wrong = cross_entropy(logits[place], chosen.long(), reduction="none")
        hardest = wrong[~chosen].topk(max(_NEGATIVES * count, 100)).values
        total = total + wrong[chosen].sum() + hardest.sum()
    return total / max(found, 1)


def settle(network: nn.Module) -> None:
    """Measure the norms' statistics anew: those of the averaged weights are nobody's yet."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    with torch.no_grad():
        for step in range(_SETTLING):
            network(batch(-1 - step)[0].to(device()))
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's face detector.")
    parser.add_argument("folder", type=Path, help="where the training's state is kept")
    parser.add_argument("models", type=Path, help="the model folder")
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    torch.manual_seed(_SEED)
    network = RetinaFace("mobilenet").to(device()).train()
    plan = replace(PLAN, steps=arguments.steps)
    state = arguments.folder / "face-detector.state"
    trained = train({"detector": network}, partial(loss_of, network), plan, state)["detector"]
    settle(trained)
    out = arguments.models / "faces/detection_mobilenet0.25_demo.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(trained.cpu().state_dict(), out)
    # Readable for the container's user too.
    out.chmod(0o644)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
