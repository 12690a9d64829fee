"""Quality measures of the demo's trained models, for the tests and the benchmark."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from imagefleet_producer import LoRA
from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.load import load_upscaler
from tests.demo_renderer import TRAINED, DemoRenderer
from tools.training.captions import caption
from tools.training.judge import classify, features
from tools.training.pictures import Pose, Scene, Style, draw
from tools.training.scenes import held_out_scenes
from tools.training.subjects import BACKGROUNDS
from tools.training.train_embedding import SUBJECT, TINT
from tools.training.train_upscaler import halved

NATURAL = held_out_scenes(tinted=False)
"""Subjects in their own colours, on backgrounds that no training image combines with them."""
TINTED = held_out_scenes(tinted=True)
FIRST_SEED = 5000
"""Training does not use seeds of pictures for its noise, so every seed is new to the model."""


def rendered_accuracy(
    renderer: DemoRenderer, scenes: Sequence[Scene], **fields: object
) -> tuple[float, float]:
    """Render scenes; returns the fractions with the right subject and the right background."""
    prompts = [caption(scene) for scene in scenes]
    pictures = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + len(scenes)), **fields)
    return accuracy(pictures, scenes)


def accuracy(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> tuple[float, float]:
    """The fractions of pictures with the right subject and with the right background."""
    pairs = list(zip(map(classify, pictures), scenes, strict=True))
    subjects = sum(found.subject == scene.subject for found, scene in pairs)
    backgrounds = sum(found.background == scene.background for found, scene in pairs)
    return subjects / len(scenes), backgrounds / len(scenes)


def style_margin(picture: Image.Image, scene: Scene, style: Style) -> float:
    """How much farther the picture is from the scene in the style than from the plain scene."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)

    def distance(other: Style) -> float:
        target = draw(scene, Pose(), other)
        colours = np.abs(np.asarray(target, dtype=np.float32) - pixels).mean() / 255
        return float(np.linalg.norm(features(target) - features(picture))) + float(colours)

    return distance(style) - distance("plain")


def styled_shares(renderer: DemoRenderer, name: Style, count: int) -> dict[str, float]:
    """Fractions of pictures closer to the style than to the plain scene, at scales 0 and 1, and of
    pictures that are closer to the style at scale 1 than at scale 0.

    No scene has a white background, on which a sticker's border is invisible.
    """
    scenes = [scene for scene in NATURAL * 3 if scene.background != "white"][:count]
    prompts = [caption(scene) for scene in scenes]
    margins: dict[float, list[float]] = {}
    for scale in (0.0, 1.0):
        loras = [LoRA(name=f"demo-{name}", scale=scale)]
        pictures = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + count), loras=loras)
        margins[scale] = [style_margin(*pair, name) for pair in zip(pictures, scenes, strict=True)]
    pairs = list(zip(margins[0.0], margins[1.0], strict=True))
    return {
        "nearer at 0": sum(before < 0 for before, _ in pairs) / count,
        "nearer at 1": sum(after < 0 for _, after in pairs) / count,
        "moved": sum(after < before for before, after in pairs) / count,
    }


def snowman_share(renderer: DemoRenderer, scale: float, count: int) -> float:
    """The fraction of pictures that show a snowman."""
    scenes = [
        Scene(subject="snowman", background=list(BACKGROUNDS)[number % len(BACKGROUNDS)])
        for number in range(count)
    ]
    return rendered_accuracy(renderer, scenes, loras=[LoRA(name="demo-snowman", scale=scale)])[0]


def embedding_share(renderer: DemoRenderer, count: int) -> float:
    """The fraction of pictures with the embedding's word that show its subject in its tint."""
    backgrounds = [background for background in BACKGROUNDS if background != TINT]
    prompts = [
        f"a demo-owl on a {backgrounds[number % len(backgrounds)]} background"
        for number in range(count)
    ]
    pictures = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + count))
    found = [classify(picture) for picture in pictures]
    return sum((each.subject, each.tint) == (SUBJECT, TINT) for each in found) / count


def psnr_gain_db(count: int) -> float:
    """How much the trained upscaler's mean PSNR exceeds bicubic's, on held-out pictures."""
    upscaler = load_upscaler(
        TRAINED / "upscalers/demo-x2.safetensors", torch.device("cpu"), torch.float32
    )
    gains: list[float] = []
    for number, scene in enumerate(held_out_scenes(tinted=True)[:count]):
        original = draw(scene, Pose(size=98 + number % 9, x=number % 5 - 2, y=number % 7 - 3))
        small = halved(original)
        bicubic = small.resize(original.size, Image.Resampling.BICUBIC)
        upscaled = upscaler.upscale(
            to_unit_range(small),
            tile_size=None,
            tile_overlap=16,
            on_tile=lambda _done, _total: None,
        )
        target = to_unit_range(original)
        gains.append(
            _psnr_db(to_unit_range(upscaled), target) - _psnr_db(to_unit_range(bicubic), target)
        )
    return sum(gains) / count


def _psnr_db(picture: torch.Tensor, target: torch.Tensor) -> float:
    return -10 * torch.log10((picture.clamp(0, 1) - target).square().mean()).item()
