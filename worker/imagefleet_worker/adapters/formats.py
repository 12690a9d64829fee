"""Adapter files: read whole and fitted to a checkpoint, every tensor of them, or refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.adapters.delta import Adapter, Delta, Target
from imagefleet_worker.adapters.detect_family import detect_family
from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.adapters.kinds.build import weight_delta, whole_delta
from imagefleet_worker.adapters.kinds.factors import ShapeMismatch
from imagefleet_worker.adapters.kinds.tensors import Incomplete
from imagefleet_worker.adapters.load_errors import LoadErrors
from imagefleet_worker.adapters.peft_alphas import PeftAlphas
from imagefleet_worker.adapters.tensor_roles import (
    BIAS_PARTS,
    INTEGER_PARTS,
    TensorRole,
    adapter_kind,
    split_key,
)
from imagefleet_worker.adapters.trigger_words import trigger_words
from imagefleet_worker.weights.adapter_tensors import (
    FileTensors,
    is_finite,
    read_tensors,
)
from imagefleet_worker.weights.families import NATIVE_SIZE_PX, Family
from imagefleet_worker.weights.safetensors_header import Header, is_safetensors, read_header

_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterFile:
    """What an adapter file holds.

    Attributes:
        adapter: its deltas, by parameter of the pipeline.
        embeddings: textual inversions that it bundles, by name: tensors by the rest of their key
            (``string_to_param.*``, ``clip_l``, ``clip_g``), unchecked but for being finite.
        metadata: the file's own text, by key.
    """

    adapter: Adapter
    embeddings: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]


def load_adapter(path: Path, naming: Naming) -> AdapterFile:
    """Read the file and fit it to the pipeline that `naming` was made from.

    Raises:
        CorruptFile: damaged, with values that are not finite, or with tensors that lack another.
        FileUnavailable: the file cannot be read.
        IncompatibleAdapter: tensors of an unknown kind, for no layer, or of the wrong shape; the
            message has the first of them, and the family that the file looks made for.
    """
    header = read_header(path) if is_safetensors(path) else None
    # Before gigabytes are read: a whole checkpoint may lie in the wrong folder.
    if header is not None and not _kinds(_shapes(header)):
        raise CorruptFile(f"{path.name} holds no adapter of a known kind")
    file = read_tensors(path)
    metadata = {} if header is None else header.metadata
    errors = LoadErrors()
    embeddings: dict[str, dict[str, Tensor]] = {}
    layers: dict[str, dict[TensorRole, str]] = {}
    for key, tensor in file.tensors.items():
        bundled, named = _BUNDLED.fullmatch(key), split_key(key)
        if not is_finite(tensor):
            errors.add("not finite", [key])
        if bundled is not None:
            embeddings.setdefault(bundled[1], {})[bundled[2]] = tensor
        elif named is None:
            errors.add("unknown", [key])
        elif layers.setdefault(named[0], {}).setdefault(named[1], key) != key:
            errors.add("twice", [key])
    deltas = _deltas(layers, file, naming, errors, PeftAlphas(metadata, path.name))
    family = detect_family(
        {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}, metadata
    )
    error = errors.error(path.name, len(file.tensors), naming.family, family)
    if error is not None:
        raise error
    if not deltas:
        raise CorruptFile(f"{path.name} holds no adapter of a known kind")
    size_bytes = sum(delta.size_bytes for delta in deltas.values())
    adapter = Adapter(file.sha256, MappingProxyType(deltas), size_bytes)
    return AdapterFile(adapter=adapter, embeddings=embeddings, metadata=metadata)


def _deltas(
    layers: Mapping[str, Mapping[TensorRole, str]],
    file: FileTensors,
    naming: Naming,
    errors: LoadErrors,
    alphas: PeftAlphas,
) -> dict[Target, Delta]:
    deltas: dict[Target, Delta] = {}
    for module, keys in layers.items():
        for parameter, own in _by_parameter(keys).items():
            named = list(own.values())
            target = naming.target(module, parameter)
            if target is None:
                errors.add("no layer", named)
            elif target in deltas:
                errors.add("twice", named)
            else:
                parts = {part: file.tensors[key] for part, key in own.items()}
                try:
                    deltas[target] = _delta(parts, target, module, naming, alphas)
                except ShapeMismatch as exc:
                    errors.add("shape", named, str(exc))
                except Incomplete as exc:
                    errors.add("incomplete", named, str(exc))
    return deltas


def _by_parameter(
    keys: Mapping[TensorRole, str],
) -> dict[Literal["weight", "bias"], dict[TensorRole, str]]:
    parts: dict[Literal["weight", "bias"], dict[TensorRole, str]] = {}
    for part, key in keys.items():
        parts.setdefault("bias" if part in BIAS_PARTS else "weight", {})[part] = key
    return parts


def _delta(
    parts: Mapping[TensorRole, Tensor],
    target: Target,
    module: str,
    naming: Naming,
    alphas: PeftAlphas,
) -> Delta:
    for part, tensor in parts.items():
        numeric = part in INTEGER_PARTS and not tensor.is_complex()
        if not (tensor.is_floating_point() or numeric):
            raise ShapeMismatch(f"{tensor.dtype}")
    shape = naming.shape(target)
    if target.parameter.endswith(".bias"):
        if len(parts) > 1:
            raise Incomplete(f"{' and '.join(parts)} for one bias")
        return whole_delta(next(iter(parts.values())), shape)
    return weight_delta(parts, shape, alphas.of(target.component, module))


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """What can be told of an adapter file without reading its weights.

    Attributes:
        kinds: such as ``("lora", "dora")``, sorted.
        family: the checkpoints that it is for; None if it cannot be told, or is none of ours.
        trigger_words: what the trainer says to put into the prompt, else its most frequent tags.
        alias: what the trainer called the file, ``ss_output_name``; None if it does not say.
        bundles_embeddings: whether it carries textual inversions too.
    """

    kinds: tuple[str, ...]
    family: Family | None
    trigger_words: tuple[str, ...]
    alias: str | None
    bundles_embeddings: bool


def describe_adapter(path: Path) -> AdapterDescription:
    """Describe the file by its header alone; a pickle, which has none, is read whole.

    Raises:
        CorruptFile: damaged, or a pickle of anything but tensors.
        FileUnavailable: the file cannot be read.
    """
    if is_safetensors(path):
        header = read_header(path)
        shapes, metadata = _shapes(header), header.metadata
    else:
        shapes = {key: tuple(tensor.shape) for key, tensor in read_tensors(path).tensors.items()}
        metadata = {}
    family = detect_family(shapes, metadata)
    return AdapterDescription(
        kinds=_kinds(shapes),
        family=family if family in NATIVE_SIZE_PX else None,
        trigger_words=trigger_words(metadata),
        alias=metadata.get("ss_output_name") or None,
        bundles_embeddings=any(_BUNDLED.fullmatch(key) for key in shapes),
    )


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {key: entry.shape for key, entry in header.tensors.items()}


def _kinds(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    named = [(found[1], shape) for key, shape in shapes.items() if (found := split_key(key))]
    return tuple(sorted({kind for part, shape in named if (kind := adapter_kind(part, shape))}))
