"""What SDXL's UNets are told beside the prompt: the text's summary, sizes, an aesthetic score."""

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline

# A1111's defaults (and diffusers'), in units of the score that the refiner was trained with.
AESTHETIC_SCORE = 6.0
NEGATIVE_AESTHETIC_SCORE = 2.5


def added_conditions(
    warm: WarmPipeline, pooled: Tensor | None, width: int, height: int, negatives: int
) -> dict[str, Tensor] | None:
    """The UNet's `added_cond_kwargs`; None for SD 1.x, which has none.

    As A1111 does, the original size and the target size are the picture's own, and nothing is
    cropped. SDXL base: height, width, crop top, crop left, target height, target width. The refiner
    has an aesthetic score in place of the target size: low for the negatives, high for the prompts.

    Args:
        pooled: `Steering.pooled`, `(R, width)`; None for SD 1.x.
        width: of the picture that is drawn now, in pixels: of a hires pass, the larger.
        height: likewise.
        negatives: how many rows, from the first on, are of negative prompts.
    """
    if pooled is None:
        return None
    rows = len(pooled)
    if warm.family == "sdxl_refiner":
        scores = [NEGATIVE_AESTHETIC_SCORE] * negatives + [AESTHETIC_SCORE] * (rows - negatives)
        ids = [[height, width, 0, 0, score] for score in scores]
    else:
        ids = [[height, width, 0, 0, height, width]] * rows
    # float32, which the UNet embeds them in: bfloat16 has no 2056.
    time_ids = torch.tensor(ids, dtype=torch.float32, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": time_ids}
