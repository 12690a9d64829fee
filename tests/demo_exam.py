"""What is measured of the demo's trained models, for the tests and the benchmark."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from imagefleet_producer import LoRA
from imagefleet_worker.imaging.convert import to_unit_range
from imagefleet_worker.upscale.load import load_upscaler
from tests.demo_renderer import TRAINED, DemoRenderer
from tools.training.captions import caption
from tools.training.judge import features, judge
from tools.training.pictures import Pose, Scene, Style, draw
from tools.training.scenes import examination
from tools.training.subjects import BACKGROUNDS
from tools.training.train_embedding import SUBJECT, TINT
from tools.training.train_upscaler import halved

NATURAL = examination(tinted=False)
"""Subjects in their own colours, on backgrounds on which no training showed them."""
TINTED = examination(tinted=True)
FIRST_SEED = 5000
"""No training draws its noise from seeds of pictures, so every seed is new to the model."""


def drawn_right(
    renderer: DemoRenderer, scenes: Sequence[Scene], **fields: object
) -> tuple[float, float]:
    """The shares of the scenes whose picture shows the right subject, the right background."""
    prompts = [caption(scene) for scene in scenes]
    pictures = renderer.draw(prompts, range(FIRST_SEED, FIRST_SEED + len(scenes)), **fields)
    return right(pictures, scenes)


def right(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> tuple[float, float]:
    """The shares of pictures with the right subject and with the right background."""
    verdicts = [judge(picture) for picture in pictures]
    pairs = list(zip(verdicts, scenes, strict=True))
    subjects = sum(verdict.subject == scene.subject for verdict, scene in pairs)
    backgrounds = sum(verdict.background == scene.background for verdict, scene in pairs)
    return subjects / len(scenes), backgrounds / len(scenes)


def lean(picture: Image.Image, scene: Scene, style: Style) -> float:
    """How much farther the picture is from the scene in the style than from the plain scene."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)

    def distance(other: Style) -> float:
        wanted = draw(scene, Pose(), other)
        colours = np.abs(np.asarray(wanted, dtype=np.float32) - pixels).mean() / 255
        return float(np.linalg.norm(features(wanted) - features(picture))) + float(colours)

    return distance(style) - distance("plain")


def styled_shares(renderer: DemoRenderer, name: Style, count: int) -> dict[str, float]:
    """Shares of pictures: nearer to the style than to the plain scene, at scale 0 and at scale 1;
    and moved towards the style, from scale 0 to scale 1.

    No scene is on white, where a sticker's border is not seen.
    """
    scenes = [scene for scene in NATURAL * 3 if scene.background != "white"][:count]
    prompts = [caption(scene) for scene in scenes]
    leans: dict[float, list[float]] = {}
    for scale in (0.0, 1.0):
        loras = [LoRA(name=f"demo-{name}", scale=scale)]
        pictures = renderer.draw(prompts, range(FIRST_SEED, FIRST_SEED + count), loras=loras)
        leans[scale] = [lean(*pair, name) for pair in zip(pictures, scenes, strict=True)]
    pairs = list(zip(leans[0.0], leans[1.0], strict=True))
    return {
        "nearer at 0": sum(before < 0 for before, _ in pairs) / count,
        "nearer at 1": sum(after < 0 for _, after in pairs) / count,
        "moved": sum(after < before for before, after in pairs) / count,
    }


def snowman_share(renderer: DemoRenderer, scale: float, count: int) -> float:
    """The share of pictures that show a snowman on the right background."""
    scenes = [
        Scene(subject="snowman", background=list(BACKGROUNDS)[number % len(BACKGROUNDS)])
        for number in range(count)
    ]
    return drawn_right(renderer, scenes, loras=[LoRA(name="demo-snowman", scale=scale)])[0]


def embedding_share(renderer: DemoRenderer, count: int) -> float:
    """The share of pictures with the embedding's word that show its subject, in its tint."""
    backgrounds = [background for background in BACKGROUNDS if background != TINT]
    prompts = [
        f"a demo-owl on a {backgrounds[number % len(backgrounds)]} background"
        for number in range(count)
    ]
    pictures = renderer.draw(prompts, range(FIRST_SEED, FIRST_SEED + count))
    verdicts = [judge(picture) for picture in pictures]
    return sum((v.subject, v.tint) == (SUBJECT, TINT) for v in verdicts) / count


def psnr_gain_db(count: int) -> float:
    """By how much the trained upscaler's mean PSNR is over bicubic's, on pictures held out."""
    upscaler = load_upscaler(
        TRAINED / "upscalers/demo-x2.safetensors", torch.device("cpu"), torch.float32
    )
    gains: list[float] = []
    for number, scene in enumerate(examination(tinted=True)[:count]):
        wanted = draw(scene, Pose(size=98 + number % 9, x=number % 5 - 2, y=number % 7 - 3))
        small = halved(wanted)
        bicubic = small.resize(wanted.size, Image.Resampling.BICUBIC)
        enlarged = upscaler.upscale(
            to_unit_range(small),
            tile_size=None,
            tile_overlap=16,
            on_tile=lambda _done, _total: None,
        )
        target = to_unit_range(wanted)
        gains.append(
            _psnr_db(to_unit_range(enlarged), target) - _psnr_db(to_unit_range(bicubic), target)
        )
    return sum(gains) / count


def _psnr_db(picture: torch.Tensor, wanted: torch.Tensor) -> float:
    return -10 * torch.log10((picture.clamp(0, 1) - wanted).square().mean()).item()
