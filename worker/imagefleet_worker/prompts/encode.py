"""Prompts as the UNet's conditioning, in the meaning that A1111 v1.10 gives them."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel
from transformers.utils.generic import ModelOutput

from imagefleet_shared.errors import PromptTooLong

from ..adapters.textual_inversion import TextEncoder, check_fit
from ..models.pipelines import WarmPipeline
from .chunks import Place, token_count, token_ids, weights
from .emphasis import Emphasis, emphasise
from .inject import injected
from .layout import lay_out
from .triggers import TextualInversion


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told to draw, for a batch in which the negatives come first."""

    hidden: Tensor
    """`(B, windows x 77, width)`; the text encoders' widths side by side."""
    pooled: Tensor | None
    """`(B, width)`, SDXL and its refiner: OpenCLIP's summary of the first window."""
    inversions: tuple[TextualInversion, ...] = ()
    """Textual inversions that the texts triggered, in order of first appearance."""


class _Encoder(NamedTuple):
    component: TextEncoder
    tokenizer: CLIPTokenizer
    model: PreTrainedModel


def encode(
    warm: WarmPipeline,
    texts: Sequence[str],
    clip_skip: int | None,
    max_tokens: int,
    inversions: Sequence[Sequence[TextualInversion]] = (),
    emphasis: Emphasis = "original",
) -> Conditioning:
    """Encode texts; the shorter ones are filled up with empty windows.

    Args:
        warm: the pipeline whose text encoders to use; they are left as they were.
        texts: B prompts, with brackets for emphasis and without tags for LoRAs.
        clip_skip: last layers to leave out, diffusers' count. SD 1.x: None keeps all. SDXL and its
            refiner: None is the layer before the last, n is n layers before that one.
        max_tokens: longest text allowed; all windows but the last count 75, however full.
        inversions: for each text those that it may trigger; empty: none for any.
        emphasis: how weights are applied.

    Raises:
        PromptTooLong: a text has more tokens.
        InvalidRequest: a weight is no finite number, or two inversions have the same token.
        IncompatibleAdapter: a text triggers an inversion for other text encoders than these.
    """
    encoders = _text_encoders(warm)
    # SDXL's two tokenizers have the same vocabulary: they differ in the padding only.
    tokenizer = encoders[0].tokenizer
    layouts = [
        lay_out(tokenizer, text, own, emphasis)
        for text, own in zip(texts, inversions or [()] * len(texts), strict=True)
    ]
    windows = _in_step(layouts, max_tokens)
    count = len(windows) // len(texts)
    triggered = _triggered(windows)
    widths: dict[TextEncoder, int] = {
        part.component: part.model.config.hidden_size for part in encoders
    }
    for inversion in triggered:
        check_fit(inversion.embedding, widths)

    factors = torch.tensor([weights(window) for window in windows], device=warm.device)
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for encoder in encoders:
        output = _run(encoder, windows, warm.device)
        layer = emphasise(_layer(warm, encoder.model, output, clip_skip), factors, emphasis)
        hidden.append(layer.unflatten(0, (len(texts), count)).flatten(1, 2))
        if encoder.component == "text_encoder_2":
            # It comes last, and only it has a projection.
            pooled = output[0].unflatten(0, (len(texts), count))[:, 0]
    return Conditioning(torch.cat(hidden, dim=-1), pooled, triggered)


def _text_encoders(warm: WarmPipeline) -> list[_Encoder]:
    """Those that the family has, in the order of their widths in the UNet's context."""
    pipeline = warm.pipeline
    first = _Encoder("text_encoder", pipeline.tokenizer, pipeline.text_encoder)
    if isinstance(pipeline, StableDiffusionPipeline):
        return [first]
    second = _Encoder("text_encoder_2", pipeline.tokenizer_2, pipeline.text_encoder_2)
    return [second] if warm.family == "sdxl_refiner" else [first, second]


def _in_step(layouts: Sequence[list[list[Place]]], max_tokens: int) -> list[list[Place]]:
    """All texts' windows in one row, the shorter texts filled up with empty ones."""
    longest = max(token_count(layout) for layout in layouts)
    if longest > max_tokens:
        raise PromptTooLong(longest, max_tokens)
    count = max(len(layout) for layout in layouts)
    return [w for layout in layouts for w in (*layout, *[[]] * (count - len(layout)))]


def _triggered(windows: Iterable[list[Place]]) -> tuple[TextualInversion, ...]:
    places = (place for window in windows for place in window)
    return tuple(dict.fromkeys(place.inversion for place in places if place.inversion))


def _run(encoder: _Encoder, windows: Sequence[list[Place]], device: torch.device) -> ModelOutput:
    tokenizer = encoder.tokenizer
    padding = cast(int, tokenizer.convert_tokens_to_ids(str(tokenizer.pad_token)))
    tokens = torch.tensor([token_ids(window, padding) for window in windows], device=device)
    with _injection(encoder, windows):
        return encoder.model(tokens, output_hidden_states=True)


def _injection(encoder: _Encoder, windows: Sequence[list[Place]]) -> AbstractContextManager[None]:
    rows: list[int] = []
    columns: list[int] = []
    vectors: list[Tensor] = []
    for row, window in enumerate(windows):
        for column, place in enumerate(window, start=1):
            if place.inversion:
                rows.append(row)
                columns.append(column)
                matrix = place.inversion.embedding.vectors[encoder.component]
                vectors.append(place.inversion.scale * matrix[place.row])
    if not vectors:
        return nullcontext()
    return injected(encoder.model, torch.tensor(rows), torch.tensor(columns), torch.stack(vectors))


def _layer(
    warm: WarmPipeline, encoder: nn.Module, output: ModelOutput, clip_skip: int | None
) -> Tensor:
    if warm.family != "sd1":
        return output["hidden_states"][-2 - (clip_skip or 0)]
    if clip_skip is None:
        return output["last_hidden_state"]
    # Older transformers 5 have the layers one level down.
    normalise = cast(nn.Module, getattr(encoder, "text_model", encoder).final_layer_norm)
    return normalise(output["hidden_states"][-1 - clip_skip])
