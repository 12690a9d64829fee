"""SDXL's additional UNet conditioning: pooled text embedding, sizes and aesthetic score."""

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline

# A1111's and diffusers' defaults, on the scale that the refiner was trained with.
AESTHETIC_SCORE = 6.0
NEGATIVE_AESTHETIC_SCORE = 2.5


def added_cond_kwargs(
    warm: WarmPipeline, pooled: Tensor | None, width: int, height: int, negatives: int
) -> dict[str, Tensor] | None:
    """The UNet's `added_cond_kwargs`; None for SD 1.x, which has none.

    As in A1111, the original size and the target size are those of the image, and nothing is
    cropped. SDXL base: height, width, crop top, crop left, target height, target width. The refiner
    has an aesthetic score in place of the target size: low for the negatives, high for the prompts.

    Args:
        warm: the pipeline that runs the pass.
        pooled: `CondBatch.pooled`, `(R, width)`; None for SD 1.x.
        width: of the current pass, in pixels; in a hires pass, the enlarged width.
        height: likewise.
        negatives: number of leading rows that belong to negative prompts.
    """
    if pooled is None:
        return None
    rows = len(pooled)
    if warm.family == "sdxl_refiner":
        scores = [NEGATIVE_AESTHETIC_SCORE] * negatives + [AESTHETIC_SCORE] * (rows - negatives)
        ids = [[height, width, 0, 0, score] for score in scores]
    else:
        ids = [[height, width, 0, 0, height, width]] * rows
    # float32, in which the UNet embeds them: bfloat16 cannot represent 2056.
    time_ids = torch.tensor(ids, dtype=torch.float32, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": time_ids}
