"""The files that restoring faces takes: found, or refused before the device is touched."""

from dataclasses import dataclass
from importlib.util import find_spec

from imagefleet_shared.errors import FileUnavailable, InvalidRequest, WorkerFailure
from imagefleet_shared.request_parts import FaceRestore
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.upscale.architectures import EXTRA

_DETECTORS = (
    "detection_Resnet50_Final",
    "detection_mobilenet0.25_Final",
    "detection_mobilenet0.25_demo",
)
"""The first that is there is used; A1111 uses the first."""
_PARSERS = ("parsing_parsenet",)


@dataclass(frozen=True)
class ResolvedFaces:
    """What a job asks for its faces, and the files for that."""

    request: FaceRestore
    restorer: ModelFile
    detector: ModelFile
    parser: ModelFile

    @property
    def files(self) -> tuple[ModelFile, ...]:
        return (self.restorer, self.detector, self.parser)


def resolve_faces(request: FaceRestore, models: ModelStore) -> ResolvedFaces:
    """A request with its files.

    Raises:
        UnknownFaceRestorer: there is none of that name.
        InvalidRequest: a fidelity for a network that has none.
        CorruptFile: the file is no face restorer.
        FileUnavailable: detector or parser is missing.
        WorkerFailure: the package for CodeFormer is missing.
    """
    restorer = models.find("face", request.restorer)
    architecture = restorer.metadata.forms[0] if restorer.metadata else ""
    if request.fidelity is not None and architecture != "CodeFormer":
        raise InvalidRequest(
            f"fidelity {request.fidelity:g} is for CodeFormer only; {request.restorer!r} is "
            f"{architecture}: leave it out"
        )
    if architecture == "CodeFormer" and find_spec("spandrel_extra_arches") is None:
        raise WorkerFailure(
            f"face restorer {request.restorer!r} is CodeFormer, under a licence for non-commercial "
            f"use, which needs {EXTRA}: see the README"
        )
    return ResolvedFaces(
        request,
        restorer,
        _find_part(models, "face detector", _DETECTORS),
        _find_part(models, "face parser", _PARSERS),
    )


def _find_part(models: ModelStore, what: str, names: tuple[str, ...]) -> ModelFile:
    there = {file.name.lower(): file for file in models.listed("face_part")}
    for name in names:
        if found := there.get(name.lower()):
            return found
    raise FileUnavailable(
        f"no {what}: put {names[0]}.pth, once, into the folder faces or GFPGAN of the worker's "
        "model folder; it is among the release files of the project facexlib"
    )
