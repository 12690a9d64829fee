"""What the UNet is told at each of its evaluations, for all pictures of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.prompts.encoded import EncodedText, pad_windows, stacked, zeroed
from imagefleet_worker.prompts.plan import Part, needs_negative, texts_of
from imagefleet_worker.prompts.triggers import PromptEmbedding


@dataclass(frozen=True)
class PlannedPicture:
    """A picture's prompts for one pass."""

    parts: tuple[Part, ...]
    """Of the prompt, at least one."""
    negative: Part
    inversions: tuple[PromptEmbedding, ...] = ()
    """Those that its texts may trigger."""


@dataclass(frozen=True, eq=False)
class CondBatch:
    """The texts of one evaluation: R rows, of which the last P are the prompts' parts.

    With guidance B rows of negatives come first, in the pictures' order, and R = B + P; without,
    R = P = B. The parts are in the pictures' order too. A picture moves by the sum of its parts'
    weights times (part - negative).
    """

    hidden: Tensor
    """`(R, windows x 77, width)`."""
    pooled: Tensor | None
    """`(R, width)`, SDXL only."""
    owners: Tensor
    """`(P,)` int64: the picture that each part belongs to."""
    weights: Tensor
    """`(P,)` float32."""


class Conditioning:
    """Steers a batch through one pass; for the engine's thread.

    Every text of every schedule is encoded when it is made, so nothing is left to fail later. An
    empty negative prompt is zeros with SDXL and its refiner, as in A1111.

    Args:
        encoder: encodes and keeps texts.
        warm: the pipeline, with the batch's adapters on.
        pictures: B of them.
        guidance_scale: of the batch.
        windows: that each text is filled up to; at least as many as any takes. A text's meaning
            depends on it, so it must be the job's own, not the batch's largest.
        settings: how texts are encoded.

    Raises:
        PromptTooLong, InvalidRequest, IncompatibleAdapter: as `PromptEncoder.encode`.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        warm: WarmPipeline,
        pictures: Sequence[PlannedPicture],
        guidance_scale: float,
        windows: int,
        settings: TextSettings,
    ) -> None:
        self.guided = any(needs_negative(picture.parts, guidance_scale) for picture in pictures)
        """Whether there are rows of negatives."""
        rows: list[tuple[Part, PlannedPicture]] = []
        if self.guided:
            rows += [(picture.negative, picture) for picture in pictures]
        rows += [(part, picture) for picture in pictures for part in picture.parts]
        owners = [place for place, picture in enumerate(pictures) for _ in picture.parts]
        factors = [part.weight for picture in pictures for part in picture.parts]
        self._owners = torch.tensor(owners, device=warm.device)
        self._weights = torch.tensor(factors, dtype=torch.float32, device=warm.device)

        self._parts = [part for part, _ in rows]
        empty = encoder.encode(warm, "", (), settings)
        self._encoded: list[dict[str, EncodedText]] = []
        for part, picture in rows:
            texts = texts_of([part])
            encoded = [encoder.encode(warm, text, picture.inversions, settings) for text in texts]
            filled = pad_windows(encoded, empty, windows)
            # As A1111 has it; diffusers, for the base only. Zeros mean the same in any number.
            if warm.family != "sd1" and part is picture.negative and texts == ("",):
                filled = [zeroed(text) for text in filled]
            self._encoded.append(dict(zip(texts, filled, strict=True)))
        self._texts: list[str] = []
        self._cond: CondBatch | None = None

    def at(self, call: int) -> CondBatch:
        """The texts of an evaluation; the same object for as long as they stay the same.

        Args:
            call: how many evaluations there were before it, in this pass.
        """
        texts = [part.text_at(call) for part in self._parts]
        if self._cond is None or texts != self._texts:
            rows = [own[text] for own, text in zip(self._encoded, texts, strict=True)]
            hidden, pooled = stacked(rows)
            self._cond = CondBatch(hidden, pooled, self._owners, self._weights)
            self._texts = texts
        return self._cond
