"""Train the demo's face detector, RetinaFace on MobileNet 0.25, on drawn faces.

    python -m tools.training.train_face_detector /tmp/demo-training worker/models

Seeded. Targets and losses follow RetinaFace (arXiv 1905.00641, section 3.1), without its dense
regression and with more weight on landmarks.
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
"""Hard negative anchors per positive anchor."""
_PICTURE_SIZES = (
    *((320, 320, 8, 24, 300), (320, 320, 8, 24, 120)),
    *((640, 640, 2, 160, 600), (200, 640, 2, 40, 180)),
)
"""Per step: drawn side, resized side, number of pictures, smallest and largest face; px."""
_STATISTICS_BATCHES = 40


def batch(step: int) -> tuple[Tensor, list[list[DrawnFace]]]:
    """A step's pictures, `(B, 3, side, side)` in the network's range, and their faces."""
    random = Random(f"{_SEED} {step}")
    side, resized_side, count, min_size, max_size = _PICTURE_SIZES[step % len(_PICTURE_SIZES)]
    pictures: list[Tensor] = []
    faces: list[list[DrawnFace]] = []
    for _ in range(count):
        sizes = [
            min_size * (max_size / min_size) ** random.random()
            for _ in range(random.choice((0, 1, 2, 4)))
        ]
        picture, drawn = draw_faces(random, side, side, tuple(sizes))
        picture = picture.resize((resized_side, resized_side), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        pictures.append(to_detector_range(pixels))
        faces.append([face.scaled(resized_side / side) for face in drawn])
    return torch.cat(pictures), faces


def targets(faces: list[DrawnFace], priors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors that match a face `(A,)`, and their box and landmark targets, `(P, 4)`, `(P, 10)`."""
    if not faces:
        return torch.zeros(len(priors), dtype=torch.bool), torch.zeros(0, 4), torch.zeros(0, 10)
    boxes = torch.tensor([face.box for face in faces], dtype=torch.float32)
    points = torch.tensor([[[z.real, z.imag] for z in face.landmarks] for face in faces]).float()
    corners = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    overlap = box_iou(corners, boxes)
    # Every face matches at least its best anchor.
    overlap[overlap.argmax(dim=0), torch.arange(len(faces))] = 2
    best, face_index = overlap.max(dim=1)
    positive = best > _MATCH
    matched = face_index[positive]
    return (
        positive,
        encode_boxes(boxes[matched], priors[positive]),
        encode_points(points[matched], priors[positive]),
    )


def loss_of(network: RetinaFace, step: int) -> Tensor:
    pictures, faces = batch(step)
    side = pictures.shape[-1]
    priors = anchors(side, side)
    to = next(network.parameters()).device
    offsets, logits, points = network(pictures.to(to))
    total, positives = torch.zeros((), device=to), 0
    for index, drawn in enumerate(faces):
        positive, boxes, marks = (each.to(to) for each in targets(drawn, priors))
        count = int(positive.sum())
        positives += count
        total = total + 2 * smooth_l1_loss(offsets[index][positive], boxes, reduction="sum")
        total = total + 3 * smooth_l1_loss(points[index][positive], marks, reduction="sum")
        losses = cross_entropy(logits[index], positive.long(), reduction="none")
        hardest = losses[~positive].topk(max(_NEGATIVES * count, 100)).values
        total = total + losses[positive].sum() + hardest.sum()
    return total / max(positives, 1)


def recompute_batch_norm(network: nn.Module) -> None:
    """Recompute the batch norms' running statistics for the averaged weights."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    with torch.no_grad():
        for step in range(_STATISTICS_BATCHES):
            network(batch(-1 - step)[0].to(device()))
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's face detector.")
    parser.add_argument("folder", type=Path, help="folder for the training's state")
    parser.add_argument("models", type=Path, help="the model folder")
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    torch.manual_seed(_SEED)
    network = RetinaFace("mobilenet").to(device()).train()
    plan = replace(PLAN, steps=arguments.steps)
    state = arguments.folder / "face-detector.state"
    trained = train({"detector": network}, partial(loss_of, network), plan, state)["detector"]
    recompute_batch_norm(trained)
    out = arguments.models / "faces/detection_mobilenet0.25_demo.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(trained.cpu().state_dict(), out)
    # Readable by the container's user too.
    out.chmod(0o644)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
