"""Detects a face restorer's architecture from the tensor names in its file."""

from pathlib import Path
from typing import Literal, cast, get_args

import torch
from safetensors import safe_open
from spandrel import canonicalize_state_dict
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, FileUnavailable
from imagefleet_worker.weights.upscaler_tensors import first_sentence, read_weights

Architecture = Literal["GFPGAN", "RestoreFormer", "CodeFormer"]

# As spandrel detects them. It knows CodeFormer only if its extra package is installed, and without
# it the file must still be identified.
_TENSORS: dict[Architecture, frozenset[str]] = {
    "GFPGAN": frozenset({"toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"}),
    "RestoreFormer": frozenset(
        {"quantize.embedding.weight", "quant_conv.weight", "encoder.conv_in.weight"}
    ),
    "CodeFormer": frozenset(
        {"quantize.embedding.weight", "position_emb", "idx_pred_layer.1.weight"}
    ),
}


def read_architecture(path: Path) -> Architecture:
    """The restorer's architecture; only legacy PyTorch files are read completely.

    Raises:
        FileUnavailable: the file cannot be read.
        CorruptFile: it is damaged, or no face restorer.
    """
    return detect_architecture(_tensor_names(path), path)


def detect_architecture(names: frozenset[str], path: Path) -> Architecture:
    """The architecture whose marker tensors are all present; raises `CorruptFile` if none."""
    for architecture, tensors in _TENSORS.items():
        if tensors <= names:
            return architecture
    raise CorruptFile(
        f"face restorer {path.name}: none of {', '.join(get_args(Architecture))}; "
        f"{len(names)} entries ({', '.join(sorted(names)[:3])} ...)"
    )


def _tensor_names(path: Path) -> frozenset[str]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head[8:9] == b"{":
            with safe_open(path, "pt") as tensors:
                return frozenset(tensors.keys())
        if head.startswith(b"PK"):
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            # The legacy PyTorch format cannot be memory-mapped.
            weights = read_weights(path)
    except OSError as error:
        raise FileUnavailable(f"face restorer {path.name}: {error.strerror}") from error
    except CorruptFile:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise CorruptFile(f"face restorer {path.name}: {first_sentence(error)}") from error
    if not isinstance(weights, dict):
        raise CorruptFile(f"face restorer {path.name}: holds a {type(weights).__name__}")
    return frozenset(canonicalize_state_dict(cast("dict[str, Tensor]", weights)))
