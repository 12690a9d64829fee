"""Several texts encoded at once, as tests compare them with other implementations."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.encode import TextSettings, encode_windows, windows_of
from imagefleet_worker.prompts.encoded import pad_windows, stacked
from imagefleet_worker.prompts.triggers import PromptEmbedding
from imagefleet_worker.prompts.windows import inversions_in


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told to draw, for a batch in which the negatives come first."""

    hidden: Tensor
    """`(B, windows x 77, width)`; the text encoders' widths side by side."""
    pooled: Tensor | None
    """`(B, width)`, SDXL and its refiner: OpenCLIP's summary of the first window."""
    inversions: tuple[PromptEmbedding, ...] = ()
    """Textual inversions that the texts triggered, in order of first appearance."""


def encode(
    warm: WarmPipeline,
    texts: Sequence[str],
    clip_skip: int | None,
    max_tokens: int,
    inversions: Sequence[Sequence[PromptEmbedding]] = (),
    emphasis: Emphasis = "original",
) -> Conditioning:
    """Encode texts; the shorter ones are filled up with empty windows.

    Args:
        warm: the pipeline whose text encoders to use; they are left as they were.
        texts: B prompts, with brackets for emphasis and without tags for LoRAs.
        clip_skip: see `TextSettings`.
        max_tokens: see `TextSettings`.
        inversions: for each text those that it may trigger; empty: none for any.
        emphasis: see `TextSettings`.

    Raises:
        PromptTooLong, InvalidRequest: as `windows_of`.
        IncompatibleAdapter: as `encode_windows`.
    """
    settings = TextSettings(clip_skip, max_tokens, emphasis)
    layouts = [
        windows_of(warm, text, own, settings)
        for text, own in zip(texts, inversions or [()] * len(texts), strict=True)
    ]
    triggered = dict.fromkeys(found for windows in layouts for found in inversions_in(windows))
    encoded = [encode_windows(warm, windows, settings) for windows in layouts]
    empty = encode_windows(warm, [[]], settings)
    filled = pad_windows(encoded, empty, max(len(windows) for windows in layouts))
    return Conditioning(*stacked(filled), tuple(triggered))
