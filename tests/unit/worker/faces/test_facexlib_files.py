"""Our networks against facexlib 0.3.0's: parameter names, shapes and outputs.

The digests and numbers come from facexlib's own classes, filled with the same waves.
"""

from hashlib import sha256

import pytest
import torch
from torch import Tensor, nn

from imagefleet_worker.faces.parsenet import ParseNet
from imagefleet_worker.faces.retinaface import RetinaFace
from tests.weights_filled import filled_with_waves


def names_and_shapes(network: nn.Module) -> str:
    lines = [f"{name} {tuple(each.shape)}" for name, each in sorted(network.state_dict().items())]
    return sha256("\n".join(lines).encode()).hexdigest()


def picture(side_px: int) -> Tensor:
    steps = torch.arange(3 * side_px * side_px, dtype=torch.float64)
    return torch.sin(steps * 0.37).float().reshape(1, 3, side_px, side_px)


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "digest", "expected"),
    [
        (
            "resnet50",
            "eb54b880ab291bf8e2244dd94de9d2b9d631c8bd6e64aaec32b5952aa4ccb6a5",
            [2.3317, -0.2952, 0.99123, 0.99136, -3.24673, 2.32757],
        ),
        (
            "mobilenet",
            "100a884cd2d9cc4142a9f85791c0f468ead3fadaa46e1a0b2ba2ef89806ce32e",
            [1.36698, -0.04127, 0.94567, 0.95798, -2.41299, 1.10836],
        ),
    ],
)
def test_retinaface_matches_facexlib(backbone: str, digest: str, expected: list[float]) -> None:
    network = RetinaFace(backbone)
    assert names_and_shapes(network) == digest
    network.load_state_dict(filled_with_waves(network))
    offsets, logits, points = network.eval()(picture(96) * 50)
    scores = logits.softmax(-1)[0, :, 1]
    found = [offsets.std(), offsets[0, 100, 2], scores[50], scores[200], points[0, 70, 3]]
    assert [float(each) for each in (*found, points.std())] == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_parsenet_matches_facexlib() -> None:
    network = ParseNet()
    digest = "6fbadcd48ddfdf6e71d91cbe10729c6335268a189309b46c083bb59f06a1f447"
    assert names_and_shapes(network) == digest
    network.load_state_dict(filled_with_waves(network))
    logits = network.eval()(picture(512))
    found = [logits.std(), logits[0, 3, 100, 200], logits[0, 18, 500, 7]]
    assert [float(each) for each in found] == pytest.approx([0.6963, 0.5792, 0.4045], rel=1e-3)
