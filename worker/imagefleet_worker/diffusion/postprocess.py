"""What is done to pictures that are drawn: faces restored, enlarged."""

from collections.abc import Sequence

from PIL import Image

from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.faces.resolved import ResolvedFaces
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.progress import Stages
from imagefleet_worker.upscale.enlarge import Enlarger


class Finisher:
    """Restores and enlarges; used on the engine's thread only."""

    def __init__(self, enlarger: Enlarger, faces: FaceRestorer) -> None:
        self.enlarger = enlarger
        """Which enlarges the pictures of a hires pass too."""
        self._faces = faces

    def retouch(
        self, pictures: Sequence[Image.Image], faces: ResolvedFaces | None, stages: Stages
    ) -> Sequence[Image.Image]:
        """What comes first: faces, unless they are for the enlarged picture; raises as its part."""
        if faces and not faces.asked.after_upscale:
            return self._faces.restore(pictures, faces, stages)
        return pictures

    def enlarge(
        self,
        pictures: Sequence[Image.Image],
        upscale: UpscalePass | None,
        faces: ResolvedFaces | None,
        stages: Stages,
    ) -> list[Image.Image]:
        """What comes last: the upscale, and faces where they are for it; raises as its parts do."""
        if upscale:
            pictures = [self.enlarger.enlarge(each, upscale, stages) for each in pictures]
        if faces and faces.asked.after_upscale:
            pictures = self._faces.restore(pictures, faces, stages)
        return list(pictures)
