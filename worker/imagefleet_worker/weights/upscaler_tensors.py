"""Reads the tensors of an upscaler's file without executing code in it."""

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, FileUnavailable

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors or PyTorch file to the CPU; the first bytes determine the format.

    PyTorch files are read by torch's restricted unpickler. spandrel has one too, but its loader
    relies on the file's suffix and passes TorchScript archives, which contain code, to
    `torch.jit.load`; here they are refused.

    Returns:
        The state dict as nested in the file; spandrel unwraps `params_ema` and the like.

    Raises:
        FileUnavailable: the file cannot be opened.
        CorruptFile: it is damaged, of another kind, or asks for Python objects.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise FileUnavailable(f"upscaler {path.name}: {error.strerror}") from error
    is_safetensors = head[8:9] == b"{"
    if not is_safetensors and not head.startswith((_ZIP, _PICKLE)):
        raise CorruptFile(
            f"upscaler {path.name}: starts with {head!r}; allowed are safetensors and PyTorch files"
        )
    try:
        if is_safetensors:
            return load_file(path)
        # An open file, because torch would rely on the suffix of a path.
        with path.open("rb") as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise CorruptFile(f"upscaler {path.name}: {first_sentence(error)}") from error
    if not isinstance(weights, dict):
        raise CorruptFile(
            f"upscaler {path.name}: holds a {type(weights).__name__}, not named tensors"
        )
    return cast("dict[str, Tensor]", weights)


def first_sentence(error: Exception) -> str:
    """A one-line summary of an error.

    torch wraps unpickling errors in advice to load the file without restrictions, which does not
    belong in our log; the original error is in the context.
    """
    inner = error.__context__ or error
    return f"{type(inner).__name__}: {' '.join(str(inner).split()).partition('. ')[0]}"
