"""The tensors of an adapter file, read without running what is in it."""

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
"""Of a pickle no header says what is in it; all that are known are far smaller."""

_EXPONENT_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
_ALL_BUT_SIGN = 0x7FFF


@dataclass(frozen=True, kw_only=True, eq=False)
class FileTensors:
    """What a file holds.

    Attributes:
        sha256: of the bytes that the tensors were read from, hexadecimal.
        tensors: by key and in its order, on the CPU, in memory of their own.
    """

    sha256: str
    tensors: Mapping[str, Tensor]


def read_tensors(path: Path) -> FileTensors:
    """Read a .safetensors file, or a pickle of tensors alone; the first bytes tell which.

    The header is not looked at before: for that there is `models.header.read_header`.

    Raises:
        CorruptFile: damaged, or a pickle of anything else, or a huge one.
        FileUnavailable: the file cannot be read.
    """
    pickled = not is_safetensors(path)
    # In one go, so that the hash is of just these tensors although the file may be replaced.
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
    # Sorted: safetensors gives another order with every run, and messages list the first keys.
    return FileTensors(sha256=sha256, tensors={key: tensors[key] for key in sorted(tensors)})


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is a finite number, in float32 too."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # With numpy, in one thread: thousands of small parallel launches wait for one another when the
    # machine is busy (measured for an SDXL LoRA: seconds instead of tens of milliseconds).
    if tensor.dtype in _EXPONENT_BITS:
        # isfinite() of half floats goes by float32 and takes ten times as long.
        bits = tensor.view(torch.int16).numpy() & _ALL_BUT_SIGN
        return bool(bits.max() < _EXPONENT_BITS[tensor.dtype])
    return bool(np.isfinite(tensor.float().numpy()).all())


def _pickled(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        _refuse_compression(content)
        loaded: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # A damaged pickle raises whatever its bytes happen to lead to.
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
    # A tensor may claim one stored number for all of its elements.
    if sum(tensor.nbytes for tensor in tensors.values()) > len(content):
        raise CorruptFile(f"{name} has tensors larger than the file itself")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return (tensor.layout, tensor.device.type) == (torch.strided, "cpu") and not tensor.is_quantized


def _refuse_compression(content: bytes) -> None:
    """A few kilobytes could become gigabytes; torch.save compresses nothing."""
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CorruptFile("its zip is compressed")
