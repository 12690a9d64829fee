"""Postprocessing of decoded pictures: face restoration and upscaling."""

from collections.abc import Sequence

from PIL import Image

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.faces.resolved import ResolvedFaces
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.upscale.enlarge import Enlarger


class Postprocessor:
    """Restores faces and upscales; used on the engine's thread only."""

    def __init__(self, enlarger: Enlarger, face_restorer: FaceRestorer) -> None:
        self.enlarger = enlarger
        """Also used between the passes of a hires job."""
        self._face_restorer = face_restorer

    def restore_faces(
        self, pictures: Sequence[Image.Image], faces: ResolvedFaces | None, progress: BatchProgress
    ) -> Sequence[Image.Image]:
        """Restore faces before the upscale, unless that is to happen after it.

        Raises as `FaceRestorer.restore`.
        """
        if faces and not faces.request.after_upscale:
            return self._face_restorer.restore(pictures, faces, progress)
        return pictures

    def enlarge(
        self,
        pictures: Sequence[Image.Image],
        upscale: UpscalePass | None,
        faces: ResolvedFaces | None,
        progress: BatchProgress,
    ) -> list[Image.Image]:
        """Upscale, then restore faces if that is to happen after the upscale.

        Raises as `Enlarger.enlarge` and `FaceRestorer.restore`.
        """
        if upscale:
            pictures = [self.enlarger.enlarge(each, upscale, progress) for each in pictures]
        if faces and faces.request.after_upscale:
            pictures = self._face_restorer.restore(pictures, faces, progress)
        return list(pictures)
