"""Restore the faces of pictures: detect, align, restore, paste back."""

import logging
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from imagefleet_worker.faces.align import Alignment, align, warp_to_face
from imagefleet_worker.faces.detect import Face, detect
from imagefleet_worker.faces.mask import soft_mask
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.parsenet import ParseNet
from imagefleet_worker.faces.paste import Canvas
from imagefleet_worker.faces.regions import merge_regions, overlap
from imagefleet_worker.faces.resolved import ResolvedFaces
from imagefleet_worker.faces.restorer import DEFAULT_FIDELITY, Restorer
from imagefleet_worker.imaging.decode import grey16_to_rgb
from imagefleet_worker.progress import BatchProgress

logger = logging.getLogger(__name__)


class FaceRestorer:
    """Restores faces with cached networks; used on the engine's thread only."""

    def __init__(self, networks: FaceNetworks) -> None:
        self._networks = networks

    def restore(
        self,
        pictures: Sequence[Image.Image],
        faces: ResolvedFaces,
        progress: BatchProgress,
    ) -> list[Image.Image]:
        """Restore the faces of pictures.

        Pixels outside every face's mask are unchanged; a picture without faces is returned as is.
        Every face is cropped from the original picture and they are pasted in order of score; the
        result is then blended with the original once, by visibility, as in A1111.

        Args:
            pictures: RGB; or I;16, which becomes RGB if it has a face.

        Raises:
            CorruptFile: a network cannot be loaded, or its output is not finite.
            BatchCanceled: every job of the batch has stopped; checked after each face.
        """
        progress.begin_stage("faces")
        detector = self._networks.detector(faces.detector)
        device = self._networks.device
        detected = [detect(detector, device, grey16_to_rgb(picture)) for picture in pictures]
        total = sum(len(faces_of_picture) for faces_of_picture in detected)
        logger.info(
            "%d faces in %d pictures",
            total,
            len(pictures),
            extra={
                "action": "find_faces",
                "faces": [len(faces_of_picture) for faces_of_picture in detected],
            },
        )
        if not total:
            return list(pictures)
        restorer = _PictureRestorer(self._networks, faces)
        progress.begin_stage("faces", total)
        restored: list[Image.Image] = []
        for picture, faces_of_picture in zip(pictures, detected, strict=True):
            restored.append(
                restorer.restore_picture(grey16_to_rgb(picture), faces_of_picture, progress)
                if faces_of_picture
                else picture
            )
        return restored


class _PictureRestorer:
    """Restores the faces of one job's pictures."""

    def __init__(self, networks: FaceNetworks, faces: ResolvedFaces) -> None:
        self._device = networks.device
        self._restorer: Restorer = networks.restorer(faces.restorer)
        self._parser: ParseNet = networks.parser(faces.parser)
        request = faces.request
        self._visibility = request.visibility
        self._fidelity = DEFAULT_FIDELITY if request.fidelity is None else request.fidelity

    def restore_picture(
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
        # Groups of overlapping faces are pasted one by one: only their boxes are held in floats.
        for box in merge_regions(each.region for each in aligned):
            canvas = Canvas(picture, box)
            for alignment in aligned:
                if overlap(alignment.region, box):
                    canvas.paste(self._restore_face(warp_to_face(picture, alignment)), alignment)
                    progress.step()
            canvas.blend_into(restored, self._visibility)
        return restored

    def _restore_face(self, face: Tensor) -> Tensor:
        """Restore an aligned face: colours in [0, 1], with its mask as a fourth channel."""
        restored = self._restorer(face.to(self._device) * 2 - 1, self._fidelity)
        mask = soft_mask(self._parser(restored))
        return torch.cat([(restored + 1) / 2, mask], dim=1).cpu()
