"""Find the files that face restoration needs, or refuse the job before it reaches the device."""

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
"""In order of preference; A1111 uses the first."""
_PARSERS = ("parsing_parsenet",)


@dataclass(frozen=True)
class ResolvedFaces:
    """A face restoration request and the files it needs."""

    request: FaceRestore
    restorer: ModelFile
    detector: ModelFile
    parser: ModelFile

    @property
    def files(self) -> tuple[ModelFile, ...]:
        return (self.restorer, self.detector, self.parser)


def resolve_faces(request: FaceRestore, models: ModelStore) -> ResolvedFaces:
    """Find the files of a request.

    Raises:
        UnknownFaceRestorer: no restorer has that name.
        InvalidRequest: a fidelity is given but the network has none.
        CorruptFile: the file is not a face restorer.
        FileUnavailable: the detector or the parser is missing.
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


def _find_part(models: ModelStore, role: str, names: tuple[str, ...]) -> ModelFile:
    available = {file.name.lower(): file for file in models.list_models("face_part")}
    for name in names:
        if found := available.get(name.lower()):
            return found
    raise FileUnavailable(
        f"no {role}: put {names[0]}.pth, once, into the folder faces or GFPGAN of the worker's "
        "model folder; it is among the release files of the project facexlib"
    )
