"""Train the demo's SwinIR x2 on the same pictures as the checkpoint.

    python -m tools.training.train_upscaler /tmp/demo-training worker/models

Seeded; starts from `tools.make_demo_upscaler`, which interpolates.
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
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor

from tools.make_demo_upscaler import make_demo_upscaler, new_network
from tools.training.loop import Plan, device, train
from tools.training.pictures import SIDE_PX, Style, any_pose, draw
from tools.training.scenes import training_scenes

PLAN = Plan(steps=800, learning_rate=1e-3, ema=0.995)
_SEED = 3
_POOL = 800
_STYLES: tuple[Style, ...] = ("plain", "plain", "plain", "sticker", "blueprint")
_CROP_PX = 64
_BATCH = 16


def halved(picture: Image.Image) -> Image.Image:
    """Halve a picture by bicubic resampling, the convention for measuring upscalers."""
    size = picture.width // 2, picture.height // 2
    return picture.resize(size, Image.Resampling.BICUBIC)


def picture_pairs() -> tuple[Tensor, Tensor]:
    """Pictures and their halves, `(N, 3, 128, 128)` and `(N, 3, 64, 64)`, uint8."""
    random = Random(_SEED)
    scenes = [scene for part in training_scenes() for scene in part]
    whole = [
        draw(random.choice(scenes), any_pose(random), random.choice(_STYLES)) for _ in range(_POOL)
    ]
    stacks = [np.stack([np.asarray(each) for each in whole])]
    stacks.append(np.stack([np.asarray(halved(each)) for each in whole]))
    large, small = (torch.from_numpy(stack).permute(0, 3, 1, 2) for stack in stacks)
    return large, small


def loss_of(network: SwinIR, pairs: tuple[Tensor, Tensor], step: int) -> Tensor:
    random = Random(f"{_SEED} {step}")
    large, small = pairs
    targets: list[Tensor] = []
    inputs: list[Tensor] = []
    for _ in range(_BATCH):
        picture = random.randrange(len(large))
        top, left = (random.randrange((SIDE_PX - _CROP_PX) // 2 + 1) for _ in range(2))
        half = _CROP_PX // 2
        inputs.append(small[picture, :, top : top + half, left : left + half])
        targets.append(
            large[picture, :, 2 * top : 2 * top + _CROP_PX, 2 * left : 2 * left + _CROP_PX]
        )
    to = next(network.parameters()).device
    output = network(torch.stack(inputs).to(to) / 255)
    error = output - torch.stack(targets).to(to) / 255
    # Charbonnier loss (arXiv 2108.10257, eq. 8).
    return (error.square() + 1e-6).sqrt().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's SwinIR x2.")
    parser.add_argument("folder", type=Path, help="folder for the training's state")
    parser.add_argument("models", type=Path, help="the model folder")
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    torch.manual_seed(_SEED)
    network = new_network(2)
    network.load_state_dict(make_demo_upscaler(2, _SEED))
    network.to(device())
    plan = replace(PLAN, steps=arguments.steps)
    pairs = picture_pairs()
    trained = train(
        {"upscaler": network},
        partial(loss_of, network, pairs),
        plan,
        arguments.folder / "upscaler.state",
    )["upscaler"]
    out = arguments.models / "upscalers/demo-x2.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(trained.cpu().state_dict(), out)
    # Readable by the container's user too.
    out.chmod(0o644)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
