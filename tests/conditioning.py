"""Encoding a batch of texts, for comparisons with other implementations."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.encode import TextSettings, encode_windows, windows_of
from imagefleet_worker.prompts.encoded import pad_windows, stack_rows
from imagefleet_worker.prompts.triggers import PromptEmbedding
from imagefleet_worker.prompts.windows import inversions_in


@dataclass(frozen=True)
class Conditioning:
    """The UNet's text conditioning for a batch of texts."""

    hidden: Tensor
    """`(B, windows x 77, width)`; the text encoders' widths side by side."""
    pooled: Tensor | None
    """`(B, width)`, SDXL and its refiner only: OpenCLIP's pooled output of the first window."""
    inversions: tuple[PromptEmbedding, ...] = ()
    """Textual inversions that the texts trigger, in order of first appearance."""


def encode(
    warm: WarmPipeline,
    texts: Sequence[str],
    clip_skip: int | None,
    max_tokens: int,
    inversions: Sequence[Sequence[PromptEmbedding]] = (),
    emphasis: Emphasis = "original",
) -> Conditioning:
    """Encode texts; the shorter ones are padded with empty windows.

    Args:
        warm: the pipeline whose text encoders to use; they are not changed.
        texts: B prompts, which may have brackets for emphasis but no LoRA tags.
        clip_skip: see `TextSettings`.
        max_tokens: see `TextSettings`.
        inversions: for each text, those that it may trigger; empty: none for any.
        emphasis: see `TextSettings`.

    Raises:
        PromptTooLong, InvalidRequest: as `windows_of`.
        IncompatibleAdapter: as `encode_windows`.
    """
    settings = TextSettings(clip_skip, max_tokens, emphasis)
    layouts = [
        windows_of(warm, text, of_text, settings)
        for text, of_text in zip(texts, inversions or [()] * len(texts), strict=True)
    ]
    triggered = dict.fromkeys(
        inversion for windows in layouts for inversion in inversions_in(windows)
    )
    encoded = [encode_windows(warm, windows, settings) for windows in layouts]
    empty = encode_windows(warm, [[]], settings)
    padded = pad_windows(encoded, empty, max(len(windows) for windows in layouts))
    return Conditioning(*stack_rows(padded), tuple(triggered))
