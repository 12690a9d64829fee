"""Every error of Imagefleet, split by who must act.

    ImagefleetError
    ├── InvalidRequest          the caller: the request can never succeed as it is
    │   ├── UnknownScheduler
    │   ├── UnknownCheckpoint
    │   ├── UnknownUpscaler
    │   ├── UnknownFaceRestorer
    │   ├── UnknownLora
    │   ├── UnknownEmbedding
    │   ├── IncompatibleAdapter
    │   ├── UnsupportedSize
    │   ├── TooManyPixels
    │   ├── PromptTooLong
    │   └── InvalidImage
    ├── WorkerFailure           the operator: the fleet failed
    │   ├── OutOfMemory
    │   ├── FileUnavailable
    │   ├── CorruptFile
    │   ├── StorageUnavailable
    │   ├── BrokerUnavailable
    │   └── PoisonJob
    ├── JobTimeout              the caller: the job was not done in the time allowed
    ├── JobCanceled             nobody: it was canceled on request
    └── JobNotFound             the caller: no such job, or its record has expired

Constructor arguments are positional, plain JSON and equal to ``args``: the ledger and Celery both
store an error as its class name and ``args`` and rebuild it as ``cls(*args)``.
"""

from collections.abc import Sequence


class ImagefleetError(Exception):
    """Anything that Imagefleet raises on purpose; catch this to catch them all."""


class InvalidRequest(ImagefleetError):
    """The request can never succeed; the message has the value given and the values allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


class _UnknownName(InvalidRequest):
    _kind = "thing"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        ImagefleetError.__init__(self, name, list(known))

    def __str__(self) -> str:
        name, known = self.args
        return f"unknown {self._kind} {name!r}; known: {_list(known)}"


class UnknownScheduler(_UnknownName):
    """The scheduler's name is not in the table; use one of those listed."""

    _kind = "scheduler"


class UnknownCheckpoint(_UnknownName):
    """The model store has no checkpoint of that name; use one of those listed, or add the file."""

    _kind = "checkpoint"


class UnknownUpscaler(_UnknownName):
    """The model store has no upscaler of that name; use one of those listed, or add the file."""

    _kind = "upscaler"


class UnknownFaceRestorer(_UnknownName):
    """The model store has no face restorer of that name; use one of those listed, or add it."""

    _kind = "face restorer"


class UnknownEmbedding(_UnknownName):
    """The model store has no embedding of that name; use one of those listed, or add the file."""

    _kind = "embedding"


class UnknownLora(_UnknownName):
    """The model store has no LoRA of that name; use one of those listed, or add the file."""

    _kind = "LoRA"


class IncompatibleAdapter(InvalidRequest):
    """The adapter does not fit the checkpoint; the message says why. Name another."""


class UnsupportedSize(InvalidRequest):
    """The requested image is larger than this fleet allows; request fewer pixels."""

    def __init__(self, what: str, width: int, height: int, max_pixels: int) -> None:
        ImagefleetError.__init__(self, what, width, height, max_pixels)

    def __str__(self) -> str:
        what, width, height, max_pixels = self.args
        pixels = width * height
        return f"{what} {width}x{height} has {pixels} pixels; at most {max_pixels} are allowed"


class TooManyPixels(InvalidRequest):
    """The images of one request are too large together; split them over several requests."""

    def __init__(self, what: str, pixels: int, max_pixels: int) -> None:
        ImagefleetError.__init__(self, what, pixels, max_pixels)

    def __str__(self) -> str:
        what, pixels, max_pixels = self.args
        return f"{what} have {pixels} pixels together; at most {max_pixels} are allowed"


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than this fleet allows; shorten it."""

    def __init__(self, tokens: int, max_tokens: int) -> None:
        ImagefleetError.__init__(self, tokens, max_tokens)

    def __str__(self) -> str:
        tokens, max_tokens = self.args
        return f"the prompt has {tokens} tokens; at most {max_tokens} are allowed"


class InvalidImage(InvalidRequest):
    """An input image cannot be read, is truncated, or is not of an allowed format."""


class WorkerFailure(ImagefleetError):
    """The fleet failed; the message says what the operator should check."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class OutOfMemory(WorkerFailure):
    """The device ran out of memory; request fewer pixels at once, or use a lower preset."""


class FileUnavailable(WorkerFailure):
    """A file that the worker needs cannot be read; the message names it."""


class CorruptFile(WorkerFailure):
    """A model file is damaged, or not of the kind its folder is for; replace it."""


class StorageUnavailable(WorkerFailure):
    """The object store cannot be reached or refuses the credentials."""


class BrokerUnavailable(WorkerFailure):
    """Redis cannot be reached or refuses; while enqueueing, the message has the job's id."""


class PoisonJob(WorkerFailure):
    """The job lost every worker that ran it; it is in the dead-letter list."""

    def __init__(self, job_id: str, attempts: int) -> None:
        ImagefleetError.__init__(self, job_id, attempts)

    def __str__(self) -> str:
        job_id, attempts = self.args
        return f"job {job_id} was given up: its worker died or stalled in all {attempts} attempts"


class JobTimeout(ImagefleetError):
    """The job did not finish in the time allowed."""

    def __init__(self, job_id: str, seconds: float) -> None:
        super().__init__(job_id, seconds)

    def __str__(self) -> str:
        job_id, seconds = self.args
        return f"job {job_id} was not done within {seconds:g} s"


class JobCanceled(ImagefleetError):
    """The job was canceled before it finished."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)

    def __str__(self) -> str:
        return f"job {self.args[0]} was canceled"


class JobNotFound(ImagefleetError):
    """No job of that id is known: it never existed, or its record has expired."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)

    def __str__(self) -> str:
        return f"no job {self.args[0]!r}: the id is wrong, or its record has expired"
