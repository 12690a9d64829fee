"""A slow and plain implementation of A1111 v1.10's prompt encoding, by its documented rules.

Nothing here uses the code under test. Windows are cut by indices, each is encoded by a copy of the
text encoder, and the vectors of a textual inversion are written into that copy's embedding table,
at tokens that the prompt does not use.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.utils.generic import ModelOutput

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from tests.unit.worker.prompts.reference_parser import pieces

START, END, COMMA = 49406, 49407, 267
_ENCODERS = {"sd1": ("",), "sdxl": ("", "_2"), "sdxl_refiner": ("_2",)}


@dataclass
class Chunk:
    """A window of at most 75 tokens; the vectors of inversions have negative numbers."""

    tokens: list[int]
    weights: list[float]


def chunks(tokenizer: CLIPTokenizer, text: str, triggers: Mapping[str, range]) -> list[Chunk]:
    """The windows; `triggers` has the negative numbers that stand for a trigger's vectors."""
    by_ids = {tuple(ids(tokenizer, token)): list(numbers) for token, numbers in triggers.items()}
    done: list[Chunk] = []
    chunk = Chunk([], [])
    for piece, weight in pieces(text):
        if (piece, weight) == ("BREAK", -1.0):
            done.append(chunk)
            chunk = Chunk([], [])
            continue
        tokens = ids(tokenizer, piece)
        while tokens:
            trigger = max(
                (key for key in by_ids if tuple(tokens[: len(key)]) == key), key=len, default=()
            )
            vectors = by_ids.get(trigger)
            if len(chunk.tokens) == 75:
                commas = [i for i, token in enumerate(chunk.tokens) if token == COMMA]
                cut = 75
                if tokens[0] != COMMA and commas and 75 - commas[-1] <= 20:
                    cut = commas[-1] + 1
                done.append(Chunk(chunk.tokens[:cut], chunk.weights[:cut]))
                chunk = Chunk(chunk.tokens[cut:], chunk.weights[cut:])
            if vectors and len(chunk.tokens) + len(vectors) > 75:
                done.append(chunk)
                chunk = Chunk([], [])
            chunk.tokens += vectors or tokens[:1]
            chunk.weights += [weight] * len(vectors or [0])
            tokens = tokens[len(trigger) or 1 :]
    return [*done, chunk] if chunk.tokens or not done else done


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def conditioning(
    warm: WarmPipeline,
    text: str,
    clip_skip: int | None = None,
    inversions: Mapping[str, Mapping[str, Tensor]] | None = None,
    restore_mean: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`(windows x 77, width)` and SDXL's pooled `(width,)`, for one text.

    Args:
        inversions: by trigger, the vectors `(n, hidden)` for each component.
    """
    parts: list[Tensor] = []
    pooled = None
    for suffix in _ENCODERS[warm.family]:
        # Copies, so that nothing can be left behind in the pipeline.
        encoder: Any = copy.deepcopy(getattr(warm.pipeline, f"text_encoder{suffix}"))
        tokenizer: Any = getattr(warm.pipeline, f"tokenizer{suffix}")
        table = encoder.get_input_embeddings().weight
        triggers: dict[str, range] = {}
        # Ids of single bytes, which no English prompt contains.
        free = -100
        for token, vectors in (inversions or {}).items():
            matrix = vectors[f"text_encoder{suffix}"]
            triggers[token] = range(free, free + len(matrix))
            table.data[[number + 250 for number in triggers[token]]] = matrix
            free += len(matrix)
        outputs: list[Tensor] = []
        for number, chunk in enumerate(chunks(tokenizer, text, triggers)):
            tokens = [token if token >= 0 else token + 250 for token in chunk.tokens]
            padding = 0 if suffix else END
            row = [START, *tokens, END, *[padding] * (75 - len(tokens))]
            output = encoder(torch.tensor([row]), output_hidden_states=True)
            if suffix and number == 0:
                pooled = output.text_embeds[0]
            hidden = layer(warm, encoder, output, clip_skip)[0]
            factors = torch.ones(77)
            factors[1 : 1 + len(tokens)] = torch.tensor(chunk.weights)
            weighted = hidden * factors[:, None]
            if restore_mean and weighted.mean() != 0:
                weighted *= hidden.mean() / weighted.mean()
            outputs.append(weighted)
        parts.append(torch.cat(outputs))
    return torch.cat(parts, dim=-1), pooled


def layer(
    warm: WarmPipeline, encoder: nn.Module, output: ModelOutput, clip_skip: int | None
) -> Tensor:
    if warm.family != "sd1":
        return output["hidden_states"][-2]
    if clip_skip is None:
        return output["last_hidden_state"]
    return encoder.get_submodule("final_layer_norm")(output["hidden_states"][-(1 + clip_skip)])
