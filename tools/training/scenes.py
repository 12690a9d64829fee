"""Training scenes of the demo model, and scenes held out for evaluation."""

import zlib
from random import Random

from tools.training.pictures import Scene
from tools.training.subjects import BACKGROUNDS, BASE, NEVER_TOGETHER, TINTS

_HELD_OUT_OF_TEN = 1


def all_scenes() -> list[Scene]:
    """All scenes of the checkpoint's subjects whose tint differs from the background."""
    return [
        Scene(subject=subject, background=background, tint=tint)
        for subject in BASE
        for background in BACKGROUNDS
        for tint in (None, *TINTS)
        if tint != background and (subject, tint) not in NEVER_TOGETHER
    ]


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is held out for evaluation: one in ten, by a hash of its words."""
    words = f"{scene.thing} on {scene.background}"
    return zlib.crc32(words.encode()) % 10 < _HELD_OUT_OF_TEN


def training_scenes() -> tuple[list[Scene], list[Scene]]:
    """The training scenes: natural ones and tinted ones."""
    scenes = [scene for scene in all_scenes() if not is_held_out(scene)]
    return [s for s in scenes if s.tint is None], [s for s in scenes if s.tint]


def held_out_scenes(*, tinted: bool) -> list[Scene]:
    """The held-out scenes, natural or tinted, in a fixed shuffled order."""
    scenes = [s for s in all_scenes() if is_held_out(s) and (s.tint is not None) == tinted]
    Random(0).shuffle(scenes)
    return scenes
