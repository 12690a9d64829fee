"""Which scenes the demo model learns from and which are kept for its examination."""

import zlib
from random import Random

from tools.training.pictures import Scene
from tools.training.subjects import BACKGROUNDS, BASE, NEVER_TOGETHER, TINTS

_HELD_OUT_OF_TEN = 1


def every_scene() -> list[Scene]:
    """All scenes of the checkpoint's subjects that can be told apart from their background."""
    return [
        Scene(subject=subject, background=background, tint=tint)
        for subject in BASE
        for background in BACKGROUNDS
        for tint in (None, *TINTS)
        if tint != background and (subject, tint) not in NEVER_TOGETHER
    ]


def held_out(scene: Scene) -> bool:
    """Whether the scene is for the examination alone: one in ten, by its own words."""
    words = f"{scene.thing} on {scene.background}"
    return zlib.crc32(words.encode()) % 10 < _HELD_OUT_OF_TEN


def learned_scenes() -> tuple[list[Scene], list[Scene]]:
    """The scenes to learn from: the natural ones, the tinted ones."""
    scenes = [scene for scene in every_scene() if not held_out(scene)]
    return [s for s in scenes if s.tint is None], [s for s in scenes if s.tint]


def examination(*, tinted: bool) -> list[Scene]:
    """The scenes held out, natural or tinted, in a fixed order that mixes subjects."""
    scenes = [s for s in every_scene() if held_out(s) and (s.tint is not None) == tinted]
    Random(0).shuffle(scenes)
    return scenes
