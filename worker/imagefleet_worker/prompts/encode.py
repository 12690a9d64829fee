"""Prompts as the UNet's conditioning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.utils.generic import ModelOutput

from imagefleet_shared.errors import PromptTooLong

from ..models.pipelines import WarmPipeline
from .chunks import windows, windows_needed


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told to draw, for a batch in which the negatives come first."""

    hidden: Tensor
    """`(B, windows x 77, width)`; the text encoders' widths side by side."""
    pooled: Tensor | None
    """`(B, width)`, SDXL only: the second text encoder's summary of the first window."""


def encode(
    warm: WarmPipeline, texts: Sequence[str], clip_skip: int | None, max_tokens: int
) -> Conditioning:
    """Encode texts; the shorter ones are filled up with empty windows.

    Args:
        warm: the pipeline whose text encoders to use.
        texts: B prompts.
        clip_skip: last layers to leave out, diffusers' count. SD 1.x: None keeps all. SDXL: None
            is the layer before the last, n is n layers before that one.
        max_tokens: longest text allowed.

    Raises:
        PromptTooLong: a text has more tokens.
    """
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for tokenizer, encoder in _text_encoders(warm):
        tokens = [tokenizer(t, add_special_tokens=False, verbose=False).input_ids for t in texts]
        longest = max(tokens, key=len)
        if len(longest) > max_tokens:
            raise PromptTooLong(len(longest), max_tokens)
        count = windows_needed(longest)
        padding = cast(int, tokenizer.convert_tokens_to_ids(str(tokenizer.pad_token)))
        ids = [windows(text, count, padding) for text in tokens]
        flat = torch.tensor(ids, device=warm.device).flatten(0, 1)
        output = encoder(flat, output_hidden_states=True)
        layer = _layer(warm, encoder, output, clip_skip)
        hidden.append(layer.unflatten(0, (len(texts), count)).flatten(1, 2))
        if warm.family == "sdxl":
            # The second encoder comes last, and only it has a projection.
            pooled = output[0].unflatten(0, (len(texts), count))[:, 0]
    return Conditioning(torch.cat(hidden, dim=-1), pooled)


def _text_encoders(warm: WarmPipeline) -> list[tuple[CLIPTokenizer, nn.Module]]:
    pipeline = warm.pipeline
    pairs = [(pipeline.tokenizer, pipeline.text_encoder)]
    if isinstance(pipeline, StableDiffusionXLPipeline):
        pairs.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    return pairs


def _layer(
    warm: WarmPipeline, encoder: nn.Module, output: ModelOutput, clip_skip: int | None
) -> Tensor:
    if warm.family == "sdxl":
        return output["hidden_states"][-2 - (clip_skip or 0)]
    if clip_skip is None:
        return output["last_hidden_state"]
    # Older transformers 5 have the layers one level down.
    normalise = cast(nn.Module, getattr(encoder, "text_model", encoder).final_layer_norm)
    return normalise(output["hidden_states"][-1 - clip_skip])
