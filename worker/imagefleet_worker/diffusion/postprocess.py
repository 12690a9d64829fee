"""What is done to pictures that are drawn: faces restored, enlarged."""

from collections.abc import Sequence

from PIL import Image

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.faces.resolved import ResolvedFaces
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.upscale.enlarge import Enlarger


class Postprocessor:
    """Restores and enlarges; used on the engine's thread only."""

    def __init__(self, enlarger: Enlarger, face_restorer: FaceRestorer) -> None:
        self.enlarger = enlarger
        """Which enlarges the pictures of a hires pass too."""
        self._face_restorer = face_restorer

    def restore_faces(
        self, pictures: Sequence[Image.Image], faces: ResolvedFaces | None, progress: BatchProgress
    ) -> Sequence[Image.Image]:
        """What comes first: faces, unless they are for the enlarged picture; raises as its part."""
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
        """What comes last: the upscale, and faces where they are for it; raises as its parts do."""
        if upscale:
            pictures = [self.enlarger.enlarge(each, upscale, progress) for each in pictures]
        if faces and faces.request.after_upscale:
            pictures = self._face_restorer.restore(pictures, faces, progress)
        return list(pictures)
