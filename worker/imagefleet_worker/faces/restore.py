"""Faces of a picture drawn anew: found, aligned, restored, blended back."""

import logging
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from imagefleet_worker.faces.align import Alignment, align, to_face
from imagefleet_worker.faces.detect import Face, detect
from imagefleet_worker.faces.mask import soft_mask
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.parsenet import ParseNet
from imagefleet_worker.faces.paste import Canvas
from imagefleet_worker.faces.regions import merge_regions, overlap
from imagefleet_worker.faces.resolved import ResolvedFaces
from imagefleet_worker.faces.restorer import DEFAULT_FIDELITY, Restorer
from imagefleet_worker.imaging.decode import deep_grey_as_rgb
from imagefleet_worker.progress import BatchProgress

logger = logging.getLogger(__name__)


class FaceRestorer:
    """Restores faces with networks that it keeps warm; used on the engine's thread only."""

    def __init__(self, networks: FaceNetworks) -> None:
        self._networks = networks

    def restore(
        self,
        pictures: Sequence[Image.Image],
        faces: ResolvedFaces,
        progress: BatchProgress,
    ) -> list[Image.Image]:
        """The pictures with their faces restored.

        A pixel that no face's mask reaches stays as it is; a picture without faces is returned
        itself. Every face is taken from the picture as it was given, the surest is laid in first;
        then all are blended with that picture at once, as in A1111, by their visibility.

        Args:
            pictures: RGB; or I;16, which becomes RGB where it has a face.

        Raises:
            CorruptFile: a network cannot be loaded, or gives NaN.
            AllEnded: no job is to go on; asked after each face.
        """
        progress.begin_stage("faces")
        detector = self._networks.detector(faces.detector)
        device = self._networks.device
        found = [detect(detector, device, deep_grey_as_rgb(picture)) for picture in pictures]
        total = sum(len(own) for own in found)
        logger.info(
            "%d faces in %d pictures",
            total,
            len(pictures),
            extra={"action": "find_faces", "faces": [len(own) for own in found]},
        )
        if not total:
            return list(pictures)
        hand = _FacePainter(self._networks, faces)
        progress.begin_stage("faces", total)
        restored: list[Image.Image] = []
        for picture, own in zip(pictures, found, strict=True):
            restored.append(
                hand.paint(deep_grey_as_rgb(picture), own, progress) if own else picture
            )
        return restored


class _FacePainter:
    """What draws the faces of one job."""

    def __init__(self, networks: FaceNetworks, faces: ResolvedFaces) -> None:
        self._device = networks.device
        self._restorer: Restorer = networks.restorer(faces.restorer)
        self._parser: ParseNet = networks.parser(faces.parser)
        asked = faces.request
        self._visibility = asked.visibility
        self._fidelity = DEFAULT_FIDELITY if asked.fidelity is None else asked.fidelity

    def paint(
        self, picture: Image.Image, faces: Sequence[Face], progress: BatchProgress
    ) -> Image.Image:
        aligned: list[Alignment] = []
        for face in faces:
            if alignment := align(face.landmarks, *picture.size):
                aligned.append(alignment)
            else:
                progress.step()
        restored = Image.new("RGB", picture.size)
        restored.paste(picture)
        # Faces that do not meet are drawn apart: floats are only where faces are.
        for box in merge_regions(each.region for each in aligned):
            canvas = Canvas(picture, box)
            for alignment in aligned:
                if overlap(alignment.region, box):
                    canvas.lay(self._paint_face(to_face(picture, alignment)), alignment)
                    progress.step()
            canvas.blend(restored, self._visibility)
        return restored

    def _paint_face(self, face: Tensor) -> Tensor:
        """An aligned face drawn anew, in [0, 1], with its mask as a fourth channel."""
        drawn = self._restorer(face.to(self._device) * 2 - 1, self._fidelity)
        mask = soft_mask(self._parser(drawn))
        return torch.cat([(drawn + 1) / 2, mask], dim=1).cpu()
