"""Captions of the training pictures, and the subset of CLIP's vocabulary that they use."""

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
_UNKNOWN_MAX = 3


@cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer."""
    return CLIPTokenizer.from_pretrained(CONFIGS / "tokenizer")


def caption(scene: Scene, template: str = _TEMPLATES[0]) -> str:
    """The caption of a scene."""
    text = template.format(thing=scene.thing, background=scene.background)
    return re.sub(r"\ba (?=[aeiou])(?!uni)", "an ", text)


def any_caption(random: Random, scene: Scene) -> str:
    """A random training caption, which sometimes omits the background or is empty."""
    if random.random() < _EMPTY_SHARE:
        return ""
    templates = _OPEN_TEMPLATES if random.random() < _OPEN_SHARE else _TEMPLATES
    return caption(scene, random.choice(templates))


def caption_tokens() -> list[int]:
    """The tokens that captions use, sorted, after the tokens that begin and end a text."""
    captions = [
        caption(Scene(subject=subject, background=background, tint=tint), template)
        for subject in SUBJECTS
        for background in BACKGROUNDS
        for tint in (None, *TINTS)
        for template in (*_TEMPLATES, *_OPEN_TEMPLATES)
    ]
    begin, end = 49_406, 49_407
    inner = {token for text in captions for token in tokenizer().encode(text)} - {begin, end}
    return [begin, end, *sorted(inner)]


class Vocabulary:
    """A compact vocabulary: the tokens that captions use, and one index for all others.

    `assemble` expands it to CLIP's full table: all unused rows get the embedding learned for the
    unknown index, so that unknown words have little effect.
    """

    def __init__(self) -> None:
        self.tokens = caption_tokens()
        self.unknown = len(self.tokens)
        self._index = {token: index for index, token in enumerate(self.tokens)}

    def encode(self, texts: Sequence[str], random: Random | None = None) -> torch.Tensor:
        """Encode texts to `(B, 77)` indices; `random` inserts unknown words here and there."""
        rows: list[list[int]] = []
        for text in texts:
            row = [self._index.get(token, self.unknown) for token in tokenizer().encode(text)]
            if random and text and random.random() < _UNKNOWN_SHARE:
                for _ in range(random.randint(1, _UNKNOWN_MAX)):
                    row.insert(random.randint(1, len(row) - 1), self.unknown)
            rows.append([*row, *[1] * (LENGTH - len(row))])
        return torch.tensor(rows)
