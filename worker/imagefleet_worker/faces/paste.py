"""Pasting restored faces into a picture."""

import torch
from PIL import Image
from torch import Tensor

from imagefleet_worker.faces.align import Alignment, warp_to_picture
from imagefleet_worker.faces.regions import Region, bands
from imagefleet_worker.imaging.convert import from_unit_range, to_unit_range


class Canvas:
    """A rectangle of an RGB picture in floats: 12 bytes a pixel, and little beyond that."""

    def __init__(self, picture: Image.Image, box: Region) -> None:
        left, top, right, bottom = box
        self._picture, self._box = picture, box
        self._pixels = torch.empty(1, 3, bottom - top, right - left)
        for band in bands(box):
            self._view(band).copy_(to_unit_range(picture.crop(band)))

    def paste(self, face: Tensor, alignment: Alignment) -> None:
        """Paste a face over the current pixels.

        Args:
            face: `(1, 4, 512, 512)` float32 in [0, 1]: colours, and a mask.
            alignment: of the face; its region lies in the box.
        """
        for band, layer in warp_to_picture(face, alignment):
            colours, mask, under = layer[:, :3], layer[:, 3:], self._view(band)
            under += mask * (colours - under)

    def blend_into(self, restored: Image.Image, visibility: float) -> None:
        """Write the box into a copy of the picture, mixed with the original by `visibility`."""
        for band in bands(self._box):
            original = to_unit_range(self._picture.crop(band))
            blended = original + visibility * (self._view(band) - original)
            [part] = from_unit_range(blended.clamp(0, 1))
            restored.paste(part, band[:2])

    def _view(self, region: Region) -> Tensor:
        left, top, right, bottom = region
        x, y = self._box[:2]
        return self._pixels[..., top - y : bottom - y, left - x : right - x]
