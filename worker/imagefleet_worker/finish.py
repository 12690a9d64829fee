"""What is done to pictures that are drawn: faces restored, enlarged."""

from collections.abc import Sequence

from PIL import Image

from imagefleet_shared.parts import UpscalePass

from .faces.parts import ResolvedFaces
from .faces.restore import FaceRestorer
from .stages import Stages
from .upscale.enlarge import Enlarger


class Finisher:
    """Restores and enlarges; used on the engine's thread only."""

    def __init__(self, enlarger: Enlarger, faces: FaceRestorer) -> None:
        self.enlarger = enlarger
        """Which enlarges the pictures of a hires pass too."""
        self._faces = faces

    def finish(
        self,
        pictures: Sequence[Image.Image],
        upscale: UpscalePass | None,
        faces: ResolvedFaces | None,
        stages: Stages,
    ) -> list[Image.Image]:
        """The pictures, in the order of work that `faces` asks for; raises as its parts do."""
        if faces and not faces.asked.after_upscale:
            pictures = self._faces.restore(pictures, faces, stages)
        if upscale:
            pictures = [self.enlarger.enlarge(each, upscale, stages) for each in pictures]
        if faces and faces.asked.after_upscale:
            pictures = self._faces.restore(pictures, faces, stages)
        return list(pictures)
