"""The UNet's text conditioning at each evaluation, for all pictures of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.prompts.encoded import EncodedText, pad_windows, stack_rows, zeros_like
from imagefleet_worker.prompts.plan import PromptPart, needs_negative, texts_of
from imagefleet_worker.prompts.triggers import PromptEmbedding


@dataclass(frozen=True)
class PlannedPrompts:
    """The parsed prompts of one picture for one pass."""

    parts: tuple[PromptPart, ...]
    """Parts of the prompt, at least one."""
    negative: PromptPart
    inversions: tuple[PromptEmbedding, ...] = ()
    """Those that the texts may trigger."""


@dataclass(frozen=True, eq=False)
class CondBatch:
    """The conditioning of one UNet evaluation: R rows, the last P of which are prompt parts.

    With guidance the first B rows are the negative prompts, one per picture, and R = B + P;
    without, R = P = B. Parts are in the order of their pictures. A picture is guided by the sum of
    its parts' weights times (part - negative).
    """

    hidden: Tensor
    """`(R, windows x 77, width)`."""
    pooled: Tensor | None
    """`(R, width)`, SDXL only."""
    image_indices: Tensor
    """`(P,)` int64: index of the picture that each part belongs to."""
    weights: Tensor
    """`(P,)` float32."""


class Conditioning:
    """Provides the conditioning of a batch for one pass; used on the engine's thread.

    The constructor encodes every text of every schedule, so that errors occur before the first
    step. As in A1111, an empty negative prompt is encoded as zeros with SDXL and its refiner.

    Args:
        encoder: encodes and caches texts.
        warm: the pipeline, with the batch's adapters merged.
        pictures: the prompts of B pictures.
        guidance_scale: of the batch.
        windows: number of windows to which each text is padded, at least the longest text's.
            Padding changes the result, so this must be the job's own count, not the batch's
            maximum.
        settings: how texts are encoded.

    Raises:
        PromptTooLong, InvalidRequest, IncompatibleAdapter: as `PromptEncoder.encode`.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        warm: WarmPipeline,
        pictures: Sequence[PlannedPrompts],
        guidance_scale: float,
        windows: int,
        settings: TextSettings,
    ) -> None:
        self.guided = any(needs_negative(picture.parts, guidance_scale) for picture in pictures)
        """Whether there are rows for the negative prompts."""
        rows: list[tuple[PromptPart, PlannedPrompts]] = []
        if self.guided:
            rows += [(picture.negative, picture) for picture in pictures]
        rows += [(part, picture) for picture in pictures for part in picture.parts]
        image_indices = [index for index, picture in enumerate(pictures) for _ in picture.parts]
        weights = [part.weight for picture in pictures for part in picture.parts]
        self._image_indices = torch.tensor(image_indices, device=warm.device)
        self._weights = torch.tensor(weights, dtype=torch.float32, device=warm.device)

        self._parts = [part for part, _ in rows]
        empty = encoder.encode(warm, "", (), settings)
        self._encoded: list[dict[str, EncodedText]] = []
        for part, picture in rows:
            texts = texts_of([part])
            encoded = [encoder.encode(warm, text, picture.inversions, settings) for text in texts]
            padded = pad_windows(encoded, empty, windows)
            # As in A1111; diffusers does so for the base only. The number of zeros has no effect.
            if warm.family != "sd1" and part is picture.negative and texts == ("",):
                padded = [zeros_like(text) for text in padded]
            self._encoded.append(dict(zip(texts, padded, strict=True)))
        self._texts: list[str] = []
        self._cond: CondBatch | None = None

    def at(self, call: int) -> CondBatch:
        """The conditioning of an evaluation; the same object while the texts do not change.

        Args:
            call: number of evaluations before it in this pass.
        """
        texts = [part.text_at(call) for part in self._parts]
        if self._cond is None or texts != self._texts:
            rows = [encoded[text] for encoded, text in zip(self._encoded, texts, strict=True)]
            hidden, pooled = stack_rows(rows)
            self._cond = CondBatch(hidden, pooled, self._image_indices, self._weights)
            self._texts = texts
        return self._cond
