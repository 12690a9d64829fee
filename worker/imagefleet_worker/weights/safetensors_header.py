"""Reads and validates the header of a .safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, NonNegativeInt, TypeAdapter

from imagefleet_shared.errors import CorruptFile, FileUnavailable

MAX_HEADER_BYTES = 64 * 2**20
"""LoRA trainers write every tag of the training set into the header: tens of megabytes for hundreds
of thousands of images. With a higher limit, a zip's first bytes could pass for a length."""
# Full SDXL has 2 515 tensors; a file with far more is not a checkpoint, and parsing its header
# would waste memory.
MAX_TENSORS = 20_000

_LENGTH_BYTES = 8
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"

_PICKLE_REFUSED = """\
{name} is a pickle (.ckpt, .pt), and a pickle can run code when it is opened, so it is refused. \
Convert it on a machine that you trust:
    import torch; from safetensors.torch import save_file
    weights = torch.load("model.ckpt", map_location="cpu", weights_only=True)
    weights = weights.get("state_dict", weights)
    tensors = {{k: v.contiguous().clone() for k, v in weights.items() if hasattr(v, "dtype")}}
    save_file(tensors, "model.safetensors")"""


class TensorEntry(BaseModel, frozen=True):
    """A tensor's entry in the header.

    Attributes:
        dtype: safetensors' name, such as "F16".
        shape: sizes, outermost first; empty for a scalar.
        data_offsets: start and end in bytes, relative to the end of the header.
    """

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a .safetensors file.

    Attributes:
        file_name: the file's name, for messages.
        tensors: by key.
        metadata: free text by key; may be empty.
    """

    file_name: str
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    def shape(self, key: str) -> tuple[int, ...]:
        """The tensor's shape; raises ``KeyError`` if there is no such tensor."""
        return self.tensors[key].shape


_TENSORS = TypeAdapter(dict[str, TensorEntry])
_METADATA = TypeAdapter(dict[str, str])


def read_header(path: Path) -> Header:
    """Read and validate the header; the first bytes determine the format, not the suffix.

    Raises:
        CorruptFile: a pickle, another format, a damaged header, or fewer bytes than the header
            promises.
        FileUnavailable: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as stream:
            text = _header_text(stream, path.name)
        size_bytes = path.stat().st_size
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc
    header = _parse(text, path.name)
    expected = _LENGTH_BYTES + len(text) + _data_bytes(header)
    if size_bytes != expected:
        raise CorruptFile(
            f"{path.name} has {size_bytes} bytes where its header promises {expected}: damaged"
        )
    return header


def is_safetensors(path: Path) -> bool:
    """Whether the file looks like .safetensors; raises `FileUnavailable` if it is unreadable."""
    try:
        with path.open("rb") as stream:
            return starts_as_safetensors(stream.read(_LENGTH_BYTES))
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc


def starts_as_safetensors(content: bytes) -> bool:
    """Whether a file's first bytes are a plausible header length.

    Read as a length, the first bytes of a zip or of a pickled dict are 67 324 752 or more, which
    exceeds the limit. (The first byte alone does not tell: 0x80 starts a pickle, but also a file
    whose header has 128 bytes.)
    """
    start = content[:_LENGTH_BYTES]
    return len(start) == _LENGTH_BYTES and 0 < int.from_bytes(start, "little") <= MAX_HEADER_BYTES


def _header_text(stream: BinaryIO, name: str) -> bytes:
    start = stream.read(_LENGTH_BYTES)
    if starts_as_safetensors(start):
        length = int.from_bytes(start, "little")
        text = stream.read(length)
        if len(text) < length:
            raise CorruptFile(f"{name} ends inside its header: truncated")
        return text
    if start.startswith((_ZIP_START, _PICKLE_START)):
        raise CorruptFile(_PICKLE_REFUSED.format(name=name))
    raise CorruptFile(f"{name} is not a .safetensors file: its first 8 bytes give no header length")


def _parse(text: bytes, name: str) -> Header:
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise CorruptFile(f"{name} has a header that is not a JSON object")
        metadata = _METADATA.validate_python(content.pop("__metadata__", {}))
        if len(content) > MAX_TENSORS:
            raise CorruptFile(
                f"{name} lists {len(content)} tensors; at most {MAX_TENSORS} are allowed"
            )
        tensors = _TENSORS.validate_python(content)
    # Deeply nested JSON ends in RecursionError; pydantic's ValidationError is a ValueError.
    except (ValueError, RecursionError) as exc:
        raise CorruptFile(f"{name} has a damaged header: {str(exc)[:200]}") from exc
    return Header(file_name=name, tensors=tensors, metadata=metadata)


def _data_bytes(header: Header) -> int:
    return max((entry.data_offsets[1] for entry in header.tensors.values()), default=0)
