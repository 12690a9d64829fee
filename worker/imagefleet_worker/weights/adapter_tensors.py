"""Reads the tensors of an adapter file without executing code in it."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, FileUnavailable
from imagefleet_worker.weights.safetensors_header import is_safetensors, starts_as_safetensors

MAX_PICKLE_BYTES = 2 * 2**30
"""Pickles have no header to check before loading; known adapters are far smaller."""

_EXPONENT_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
_ALL_BUT_SIGN = 0x7FFF


@dataclass(frozen=True, kw_only=True, eq=False)
class FileTensors:
    """The content of an adapter file.

    Attributes:
        sha256: of the bytes that the tensors were read from, hexadecimal.
        tensors: by key, sorted, on the CPU, not backed by the file.
    """

    sha256: str
    tensors: Mapping[str, Tensor]


def read_tensors(path: Path) -> FileTensors:
    """Read a .safetensors file, or a pickle of tensors only; the first bytes decide.

    This does not validate the header first: see `safetensors_header.read_header`.

    Raises:
        CorruptFile: damaged, or a pickle that is huge or has anything but tensors.
        FileUnavailable: the file cannot be read.
    """
    pickled = not is_safetensors(path)
    # Read at once, so that hash and tensors agree even if the file is being replaced.
    try:
        if pickled and path.stat().st_size > MAX_PICKLE_BYTES:
            raise CorruptFile(f"{path.name} is a pickle of more than {MAX_PICKLE_BYTES} bytes")
        content = path.read_bytes()
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc
    if starts_as_safetensors(content):
        try:
            tensors = safetensors.torch.load(content)
        except (SafetensorError, KeyError, ValueError) as exc:
            raise CorruptFile(f"{path.name} is damaged: {exc}") from exc
    else:
        tensors = _pickled(content, path.name)
    sha256 = hashlib.sha256(content).hexdigest()
    # Sorted, because safetensors' order varies between runs and messages list the first keys.
    return FileTensors(sha256=sha256, tensors={key: tensors[key] for key in sorted(tensors)})


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is a finite number, in float32 too."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # With single-threaded numpy: on a busy machine, thousands of small parallel torch operations
    # wait for each other (measured for an SDXL LoRA: seconds instead of tens of milliseconds).
    if tensor.dtype in _EXPONENT_BITS:
        # isfinite() converts half floats to float32, which takes ten times as long.
        bits = tensor.view(torch.int16).numpy() & _ALL_BUT_SIGN
        return bool(bits.max() < _EXPONENT_BITS[tensor.dtype])
    return bool(np.isfinite(tensor.float().numpy()).all())


def _pickled(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        _refuse_compression(content)
        loaded: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # A damaged pickle can raise anything.
        reason = str(exc)[:200]
        raise CorruptFile(
            f"{name} is neither .safetensors nor a pickle of tensors alone: {reason}"
        ) from exc
    if isinstance(loaded, dict):
        loaded = cast(dict[object, object], loaded).get("state_dict", loaded)
    if not isinstance(loaded, dict):
        raise CorruptFile(f"{name} holds no table of tensors")
    table = cast(dict[object, object], loaded)
    tensors = {
        key: value.detach()
        for key, value in table.items()
        if isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)
    }
    if len(tensors) < len(table):
        others = [str(key) for key in table if key not in tensors]
        raise CorruptFile(f"{name} holds other things than tensors: {', '.join(others[:5])}")
    # A tensor with stride 0 expands one stored number to any size.
    if sum(tensor.nbytes for tensor in tensors.values()) > len(content):
        raise CorruptFile(f"{name} has tensors larger than the file itself")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return (tensor.layout, tensor.device.type) == (torch.strided, "cpu") and not tensor.is_quantized


def _refuse_compression(content: bytes) -> None:
    """Refuse zip bombs; torch.save never compresses."""
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CorruptFile("its zip is compressed")
