"""Loads textual inversions: files with learned token vectors for text encoders."""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from imagefleet_shared.errors import CorruptFile, FileUnavailable, IncompatibleAdapter
from imagefleet_worker.weights.safetensors_header import MAX_HEADER_BYTES

TextEncoder = Literal["text_encoder", "text_encoder_2"]

MAX_FILE_BYTES = 64 * 2**20
"""75 vectors of at most 5 kB each are far smaller; a larger file is not a textual inversion."""
MAX_VECTORS = 75
"""The number of tokens in a window of a prompt."""

# A1111's and diffusers' keys (diffusers' older SDXL trainer numbers them), in files for one or two
# encoders. Any other key is the token, and its vectors are for the first encoder.
_ENCODERS: dict[str, TextEncoder] = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
_PARAMETERS = "string_to_param"
_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class Embedding:
    """A loaded textual inversion; two are equal if their names and their files' contents are."""

    name: str
    """The file's name without suffix, which is also its trigger in A1111."""
    sha256: str
    """Of the file, hexadecimal; for a bundled embedding, of the LoRA file."""
    vectors: Mapping[TextEncoder, Tensor] = field(compare=False, repr=False)
    """`(n, hidden)` float32 on the CPU by text encoder; finite, with the same n for each."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that it expands to in a prompt."""
        return len(next(iter(self.vectors.values())))


def load_embedding(path: Path) -> Embedding:
    """Load a `.safetensors`, `.pt` or `.bin` file in A1111's or diffusers' layout.

    The first bytes determine the format, not the suffix. Pickles are loaded with weights_only.

    Raises:
        CorruptFile: damaged, not a textual inversion, or with non-finite values.
        FileUnavailable: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise FileUnavailable(f"{path.name} cannot be read: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise CorruptFile(f"{path.name} is larger than any textual inversion ({MAX_FILE_BYTES} B)")
    tensors = _tensors(content, path.name)
    return Embedding(path.stem, hashlib.sha256(content).hexdigest(), _vectors(tensors, path.name))


def bundled_embeddings(tensors: Mapping[str, Tensor], sha256: str) -> tuple[Embedding, ...]:
    """The embeddings that a LoRA file bundles under `bundle_emb.NAME.…`, sorted by name.

    Args:
        tensors: of the LoRA file; keys that do not start with `bundle_emb.` are ignored.
        sha256: of the LoRA file.

    Raises:
        CorruptFile: as `load_embedding`.
    """
    bundles: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith("bundle_emb."):
            continue
        match = _BUNDLED.fullmatch(key)
        if match is None:
            raise CorruptFile(f"{key} names no bundled textual inversion")
        bundle = bundles.setdefault(match[1], {})
        layout, _, rest = match[2].partition(".")
        # A bundled .pt may include the token id as a tensor, which is not used.
        if layout != "string_to_token":
            bundle[rest if layout == _PARAMETERS else match[2]] = tensor
    return tuple(
        Embedding(name, sha256, _vectors(bundles[name], f"bundle_emb.{name}"))
        for name in sorted(bundles)
    )


def require_compatible(embedding: Embedding, widths: Mapping[TextEncoder, int]) -> None:
    """Check that the embedding fits a checkpoint with text encoders of these widths.

    Raises:
        IncompatibleAdapter: it has vectors for other encoders, or of another width.
    """
    actual: dict[TextEncoder, int] = {
        encoder: tensor.shape[1] for encoder, tensor in embedding.vectors.items()
    }
    if actual != widths:
        raise IncompatibleAdapter(
            f"embedding {embedding.name!r} is for {_describe(actual)}; "
            f"the checkpoint has {_describe(widths)}"
        )


def _describe(widths: Mapping[TextEncoder, int]) -> str:
    return " and ".join(f"{encoder} of width {widths[encoder]}" for encoder in sorted(widths))


def _tensors(content: bytes, name: str) -> dict[str, Tensor]:
    # As in safetensors_header: pickles and zips exceed this length. The first byte does not tell:
    # 0x80 starts a pickle, but also a .safetensors file whose header has 128 bytes.
    if 0 < int.from_bytes(content[:8], "little") <= MAX_HEADER_BYTES:
        try:
            return safetensors.torch.load(content)
        except (SafetensorError, KeyError, ValueError) as exc:
            raise CorruptFile(f"{name} is damaged: {exc}") from exc
    return _pickled(content, name)


def _pickled(content: bytes, name: str) -> dict[str, Tensor]:
    # The first textual inversions were saved as a ParameterDict, which is safe: unpickling it only
    # sets attributes, and only its tensors are read. Allowed permanently, because torch's context
    # manager would revoke the permission while another thread loads.
    torch.serialization.add_safe_globals([nn.ParameterDict])
    try:
        loaded: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # A damaged pickle can raise anything.
        raise CorruptFile(
            f"{name} is neither .safetensors nor a .pt of tensors alone: {str(exc)[:200]}"
        ) from exc
    if isinstance(loaded, dict):
        loaded = cast(dict[object, object], loaded).get(_PARAMETERS, loaded)
    if isinstance(loaded, nn.ParameterDict):
        loaded = vars(loaded).get("_parameters")
    if not isinstance(loaded, dict):
        raise CorruptFile(f"{name} holds no table of vectors by token")
    table = cast(dict[object, object], loaded)
    tensors = {str(key): value for key, value in table.items() if isinstance(value, Tensor)}
    if len(tensors) < len(table):
        raise CorruptFile(f"{name} holds {sorted(map(str, table))}: no textual inversion")
    return tensors


def _vectors(tensors: Mapping[str, Tensor], name: str) -> dict[TextEncoder, Tensor]:
    if len(tensors) == 1 and not tensors.keys() & _ENCODERS.keys():
        (tensor,) = tensors.values()
        return {"text_encoder": _validated(tensor, name)}
    if not tensors or not tensors.keys() <= _ENCODERS.keys():
        raise CorruptFile(
            f"{name} holds {sorted(tensors)[:8]}: a textual inversion has one token, "
            "or clip_l and clip_g"
        )
    vectors: dict[TextEncoder, Tensor] = {
        _ENCODERS[key]: _validated(tensor, name) for key, tensor in tensors.items()
    }
    if len(vectors) < len(tensors) or len({len(tensor) for tensor in vectors.values()}) > 1:
        raise CorruptFile(f"{name} has not the same number of vectors for every text encoder")
    return vectors


def _validated(tensor: Tensor, name: str) -> Tensor:
    # diffusers stores a single vector without the first dimension.
    matrix = tensor.detach().unsqueeze(0) if tensor.ndim == 1 else tensor.detach()
    # Tensors in a pickle can also be sparse, on the meta device, or expanded to any size.
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not (dense and matrix.ndim == 2 and matrix.is_floating_point() and matrix.numel()):
        raise CorruptFile(f"{name} has {tensor.dtype} of shape {list(tensor.shape)} for vectors")
    if len(matrix) > MAX_VECTORS or matrix.nbytes > MAX_FILE_BYTES:
        raise CorruptFile(
            f"{name} has vectors of shape {list(tensor.shape)}; a window takes {MAX_VECTORS}"
        )
    values = matrix.to(torch.float32, copy=True)
    if not values.isfinite().all():
        raise CorruptFile(f"{name} has values that are not finite")
    return values
