"""Loads adapter files; a file is refused unless every tensor matches a layer."""

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
from imagefleet_worker.adapters.kinds.build import full_delta, weight_delta
from imagefleet_worker.adapters.kinds.factors import ShapeMismatch
from imagefleet_worker.adapters.kinds.tensors import Incomplete
from imagefleet_worker.adapters.load_errors import LoadErrors
from imagefleet_worker.adapters.peft_alphas import PeftAlphas
from imagefleet_worker.adapters.tensor_roles import (
    BIAS_ROLES,
    INTEGER_ROLES,
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
    """The content of an adapter file.

    Attributes:
        adapter: its deltas, by parameter of the pipeline.
        embeddings: bundled textual inversions by name, as tensors by the rest of their key
            (``string_to_param.*``, ``clip_l``, ``clip_g``); only checked to be finite.
        metadata: text from the file's header, by key.
    """

    adapter: Adapter
    embeddings: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]


def load_adapter(path: Path, naming: Naming) -> AdapterFile:
    """Read the file and match it to the pipeline of `naming`.

    Raises:
        CorruptFile: the file is damaged, has non-finite values, or lacks tensors that belong to
            others.
        FileUnavailable: the file cannot be read.
        IncompatibleAdapter: tensors are of an unknown kind, match no layer, or have the wrong
            shape; the message lists the first of them and the family detected from the file.
    """
    header = read_header(path) if is_safetensors(path) else None
    # Checked before gigabytes are read: the file may be a checkpoint in the wrong folder.
    if header is not None and not _kinds(_shapes(header)):
        raise CorruptFile(f"{path.name} holds no adapter of a known kind")
    file = read_tensors(path)
    metadata = {} if header is None else header.metadata
    errors = LoadErrors()
    embeddings: dict[str, dict[str, Tensor]] = {}
    layers: dict[str, dict[TensorRole, str]] = {}
    for key, tensor in file.tensors.items():
        bundled, split = _BUNDLED.fullmatch(key), split_key(key)
        if not is_finite(tensor):
            errors.add("not finite", [key])
        if bundled is not None:
            embeddings.setdefault(bundled[1], {})[bundled[2]] = tensor
        elif split is None:
            errors.add("unknown", [key])
        elif layers.setdefault(split[0], {}).setdefault(split[1], key) != key:
            errors.add("twice", [key])
    deltas = _deltas(layers, file, naming, errors, PeftAlphas(metadata, path.name))
    family = detect_family(
        {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}, metadata
    )
    error = errors.to_exception(path.name, len(file.tensors), naming.family, family)
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
        for parameter, keys_by_role in _by_parameter(keys).items():
            file_keys = list(keys_by_role.values())
            target = naming.target(module, parameter)
            if target is None:
                errors.add("no layer", file_keys)
            elif target in deltas:
                errors.add("twice", file_keys)
            else:
                tensors = {role: file.tensors[key] for role, key in keys_by_role.items()}
                try:
                    deltas[target] = _delta(tensors, target, module, naming, alphas)
                except ShapeMismatch as exc:
                    errors.add("shape", file_keys, str(exc))
                except Incomplete as exc:
                    errors.add("incomplete", file_keys, str(exc))
    return deltas


def _by_parameter(
    keys: Mapping[TensorRole, str],
) -> dict[Literal["weight", "bias"], dict[TensorRole, str]]:
    grouped: dict[Literal["weight", "bias"], dict[TensorRole, str]] = {}
    for role, key in keys.items():
        grouped.setdefault("bias" if role in BIAS_ROLES else "weight", {})[role] = key
    return grouped


def _delta(
    tensors: Mapping[TensorRole, Tensor],
    target: Target,
    module: str,
    naming: Naming,
    alphas: PeftAlphas,
) -> Delta:
    for role, tensor in tensors.items():
        may_be_integer = role in INTEGER_ROLES and not tensor.is_complex()
        if not (tensor.is_floating_point() or may_be_integer):
            raise ShapeMismatch(f"{tensor.dtype}")
    shape = naming.shape(target)
    if target.parameter.endswith(".bias"):
        if len(tensors) > 1:
            raise Incomplete(f"{' and '.join(tensors)} for one bias")
        return full_delta(next(iter(tensors.values())), shape)
    return weight_delta(tensors, shape, alphas.of(target.component, module))


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """What is known of an adapter file without reading its weights.

    Attributes:
        kinds: such as ``("lora", "dora")``, sorted.
        family: of the checkpoints that it is for; None if unknown or unsupported.
        trigger_words: the trigger phrase in the metadata, else the most frequent tags.
        alias: the name it was trained under, ``ss_output_name``; None if absent.
        bundles_embeddings: whether it also contains textual inversions.
    """

    kinds: tuple[str, ...]
    family: Family | None
    trigger_words: tuple[str, ...]
    alias: str | None
    bundles_embeddings: bool


def describe_adapter(path: Path) -> AdapterDescription:
    """Describe the file from its header only; a pickle, which has none, is read completely.

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
    roles = [(split[1], shape) for key, shape in shapes.items() if (split := split_key(key))]
    return tuple(sorted({kind for role, shape in roles if (kind := adapter_kind(role, shape))}))
