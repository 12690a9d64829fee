"""Where faces are laid over each other before they are blended with a picture."""

import torch
from PIL import Image
from torch import Tensor

from imagefleet_worker.faces.align import Alignment, to_picture
from imagefleet_worker.faces.regions import Region, bands
from imagefleet_worker.imaging.convert import from_unit_range, to_unit_range


class Canvas:
    """A rectangle of an RGB picture in floats: 12 bytes a pixel, and little more on the way."""

    def __init__(self, picture: Image.Image, box: Region) -> None:
        left, top, right, bottom = box
        self._picture, self._box = picture, box
        self._pixels = torch.empty(1, 3, bottom - top, right - left)
        for band in bands(box):
            self._at(band).copy_(to_unit_range(picture.crop(band)))

    def lay(self, face: Tensor, alignment: Alignment) -> None:
        """Lay a face over what is there.

        Args:
            face: `(1, 4, 512, 512)` float32 in [0, 1]: colours, and its share of each pixel.
            alignment: its region lies in the box.
        """
        for band, layer in to_picture(face, alignment):
            colours, share, under = layer[:, :3], layer[:, 3:], self._at(band)
            under += share * (colours - under)

    def blend(self, restored: Image.Image, visibility: float) -> None:
        """Write the box into a copy of the picture: by its share what is here, else as given."""
        for band in bands(self._box):
            given = to_unit_range(self._picture.crop(band))
            blended = given + visibility * (self._at(band) - given)
            [part] = from_unit_range(blended.clamp(0, 1))
            restored.paste(part, band[:2])

    def _at(self, region: Region) -> Tensor:
        left, top, right, bottom = region
        x, y = self._box[:2]
        return self._pixels[..., top - y : bottom - y, left - x : right - x]
