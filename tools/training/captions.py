"""What the pictures are called, and the part of CLIP's vocabulary that the captions use."""

import re
from collections.abc import Sequence
from functools import cache
from random import Random

import torch
from transformers import CLIPTokenizer

from imagefleet_worker.checkpoints.architecture import CONFIGS
from tools.training.pictures import Scene
from tools.training.subjects import BACKGROUNDS, SUBJECTS, TINTS

LENGTH = 77
_TEMPLATES = (
    "a {thing} on a {background} background",
    "a {thing} on a {background} background",
    "a picture of a {thing} on a {background} background",
    "{thing}, {background} background",
    "{background} background, {thing}",
)
_OPEN_TEMPLATES = ("a {thing}", "a picture of a {thing}")
_OPEN_SHARE = 0.08
_EMPTY_SHARE = 0.1
_UNKNOWN_SHARE = 0.15
_UNKNOWN_MOST = 3


@cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's own."""
    return CLIPTokenizer.from_pretrained(CONFIGS / "tokenizer")


def caption(scene: Scene, template: str = _TEMPLATES[0]) -> str:
    """The scene in words."""
    text = template.format(thing=scene.thing, background=scene.background)
    return re.sub(r"\ba (?=[aeiou])(?!uni)", "an ", text)


def any_caption(random: Random, scene: Scene) -> str:
    """A caption to learn from: now and then it leaves the background open or is empty."""
    if random.random() < _EMPTY_SHARE:
        return ""
    templates = _OPEN_TEMPLATES if random.random() < _OPEN_SHARE else _TEMPLATES
    return caption(scene, random.choice(templates))


def words_used() -> list[int]:
    """The tokens that captions have, in order; the first two begin and end a text."""
    every = [
        caption(Scene(subject=subject, background=background, tint=tint), template)
        for subject in SUBJECTS
        for background in BACKGROUNDS
        for tint in (None, *TINTS)
        for template in (*_TEMPLATES, *_OPEN_TEMPLATES)
    ]
    begin, end = 49_406, 49_407
    inner = {token for text in every for token in tokenizer().encode(text)} - {begin, end}
    return [begin, end, *sorted(inner)]


class Vocabulary:
    """The tokens in use in a row of their own, and one number more that stands for all others.

    The big table of CLIP's tokens is filled in at the end: all rows that no caption uses get what
    the one number learned, so that a word that the model does not know changes little.
    """

    def __init__(self) -> None:
        self.tokens = words_used()
        self.unknown = len(self.tokens)
        self._place = {token: place for place, token in enumerate(self.tokens)}

    def encode(self, texts: Sequence[str], random: Random | None = None) -> torch.Tensor:
        """`(B, 77)` places; with `random`, unknown words are strewn in."""
        rows: list[list[int]] = []
        for text in texts:
            row = [self._place.get(token, self.unknown) for token in tokenizer().encode(text)]
            if random and text and random.random() < _UNKNOWN_SHARE:
                for _ in range(random.randint(1, _UNKNOWN_MOST)):
                    row.insert(random.randint(1, len(row) - 1), self.unknown)
            rows.append([*row, *[1] * (LENGTH - len(row))])
        return torch.tensor(rows)
