"""The mask by which a restored face is pasted into the picture, as in A1111."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

_EXCLUDED_LABELS = (0, 14, 16, 17, 18)
"""ParseNet's labels for background, hat, necklace, neck and cloth."""
_SIGMA_PX = 11.0
_RADIUS_PX = 50
_BORDER_PX = 10


def soft_mask(logits: Tensor) -> Tensor:
    """The opacity of a restored face at each pixel.

    As facexlib: skin, features, hair and earrings are 1, blurred twice; a border of ten pixels is 0
    so that the square's edge does not show.

    Args:
        logits: ParseNet's, `(1, 19, 512, 512)`.

    Returns:
        `(1, 1, 512, 512)` float32 in [0, 1].
    """
    labels = logits.argmax(dim=1, keepdim=True)
    mask = torch.ones_like(labels, dtype=torch.float32)
    mask[torch.isin(labels, torch.tensor(_EXCLUDED_LABELS, device=labels.device))] = 0
    bordered = torch.zeros_like(mask)
    interior = (..., slice(_BORDER_PX, -_BORDER_PX), slice(_BORDER_PX, -_BORDER_PX))
    bordered[interior] = _blur(_blur(mask))[interior]
    return bordered.clamp(0, 1)


def _blur(mask: Tensor) -> Tensor:
    offsets = torch.arange(-_RADIUS_PX, _RADIUS_PX + 1, device=mask.device)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA_PX) ** 2)
    kernel = (kernel / kernel.sum())[None, None, None]
    padded = pad(mask, (_RADIUS_PX,) * 4, mode="reflect")
    return conv2d(conv2d(padded, kernel), kernel.mT)
