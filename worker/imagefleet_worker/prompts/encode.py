"""Encoding prompts for the UNet, with A1111 v1.10's semantics."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel
from transformers.utils.generic import ModelOutput

from imagefleet_shared.field_types import Emphasis
from imagefleet_worker.adapters.textual_inversion import TextEncoder, require_compatible
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.apply_weights import apply_weights
from imagefleet_worker.prompts.encoded import EncodedText
from imagefleet_worker.prompts.inject_embeddings import inject_embeddings
from imagefleet_worker.prompts.lay_out import lay_out
from imagefleet_worker.prompts.triggers import PromptEmbedding
from imagefleet_worker.prompts.windows import (
    WindowToken,
    check_length,
    inversions_in,
    token_ids,
    weights,
)


@dataclass(frozen=True)
class TextSettings:
    """How texts are parsed and encoded; the same for all jobs of a batch."""

    clip_skip: int | None
    """Number of last layers to skip, as diffusers counts it, for SD 1.x; None skips none. SDXL
    always takes the layer before the last."""
    max_tokens: int
    """Limit for each text; all windows but the last count 75, however full."""
    emphasis: Emphasis = "original"
    """How weights are applied."""


class _Encoder(NamedTuple):
    component: TextEncoder
    tokenizer: CLIPTokenizer
    model: PreTrainedModel


def windows_of(
    warm: WarmPipeline,
    text: str,
    inversions: Sequence[PromptEmbedding],
    settings: TextSettings,
) -> list[list[WindowToken]]:
    """A text's windows of tokens and vectors.

    Raises:
        PromptTooLong: the text has more tokens than the settings allow.
        InvalidRequest: a weight is not a finite number, or two inversions have the same token.
    """
    # SDXL's two tokenizers have the same vocabulary and differ only in the padding token.
    tokenizer = _text_encoders(warm)[0].tokenizer
    windows = lay_out(tokenizer, text, inversions, settings.emphasis)
    check_length(windows, settings.max_tokens)
    return windows


def encode_windows(
    warm: WarmPipeline, windows: Sequence[list[WindowToken]], settings: TextSettings
) -> EncodedText:
    """Encode a text's windows, one at a time.

    Kernels, and with them the order of summation, depend on the batch size. Encoding one window at
    a time makes a window's result independent of how many others there are.

    Args:
        warm: the pipeline whose text encoders to use; they are not changed.
        windows: at least one.
        settings: how texts are encoded.

    Raises:
        IncompatibleAdapter: the text triggers an inversion for other text encoders.
    """
    encoders = _text_encoders(warm)
    widths: dict[TextEncoder, int] = {
        encoder.component: encoder.model.config.hidden_size for encoder in encoders
    }
    for inversion in inversions_in(windows):
        require_compatible(inversion.embedding, widths)
    factors = torch.tensor([weights(window) for window in windows], device=warm.device)
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for encoder in encoders:
        outputs = [_run(encoder, window, warm.device) for window in windows]
        layers = [_layer(warm, encoder.model, output, settings.clip_skip) for output in outputs]
        emphasised = apply_weights(torch.cat(layers), factors, settings.emphasis)
        hidden.append(emphasised.flatten(0, 1))
        if encoder.component == "text_encoder_2":
            # The last encoder, and the only one with a projection.
            pooled = outputs[0][0][0]
    return EncodedText(torch.cat(hidden, dim=-1), pooled)


def _text_encoders(warm: WarmPipeline) -> list[_Encoder]:
    """The family's text encoders, in the order in which their hidden states are concatenated."""
    pipeline = warm.pipeline
    first = _Encoder("text_encoder", pipeline.tokenizer, pipeline.text_encoder)
    if isinstance(pipeline, StableDiffusionPipeline):
        return [first]
    second = _Encoder("text_encoder_2", pipeline.tokenizer_2, pipeline.text_encoder_2)
    return [second] if warm.family == "sdxl_refiner" else [first, second]


def _run(encoder: _Encoder, window: list[WindowToken], device: torch.device) -> ModelOutput:
    tokenizer = encoder.tokenizer
    padding = cast(int, tokenizer.convert_tokens_to_ids(str(tokenizer.pad_token)))
    tokens = torch.tensor([token_ids(window, padding)], device=device)
    with _inject(encoder, window):
        return encoder.model(tokens, output_hidden_states=True)


def _inject(encoder: _Encoder, window: list[WindowToken]) -> AbstractContextManager[None]:
    columns: list[int] = []
    vectors: list[Tensor] = []
    for column, token in enumerate(window, start=1):
        if token.inversion:
            columns.append(column)
            matrix = token.inversion.embedding.vectors[encoder.component]
            vectors.append(token.inversion.scale * matrix[token.row])
    if not vectors:
        return nullcontext()
    rows = torch.zeros(len(columns), dtype=torch.int64)
    return inject_embeddings(encoder.model, rows, torch.tensor(columns), torch.stack(vectors))


def _layer(
    warm: WarmPipeline, encoder: nn.Module, output: ModelOutput, clip_skip: int | None
) -> Tensor:
    if warm.family != "sd1":
        # SDXL was trained on the layer before the last; by default A1111 ignores clip skip there.
        return output["hidden_states"][-2]
    if clip_skip is None:
        return output["last_hidden_state"]
    # Older releases of transformers 5 nest the layers in `text_model`.
    final_layer_norm = cast(nn.Module, getattr(encoder, "text_model", encoder).final_layer_norm)
    return final_layer_norm(output["hidden_states"][-1 - clip_skip])
