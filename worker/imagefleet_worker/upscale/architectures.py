"""The architectures that an upscaler file may be of."""

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from spandrel import (
    MAIN_REGISTRY,
    ArchRegistry,
    ModelDescriptor,
    ModelLoader,
    UnsupportedModelError,
)
from torch import Tensor

EXTRA = "imagefleet-worker[extra-arches]"
"""What brings `spandrel_extra_arches`: architectures under copyleft or non-commercial licences."""

_EXTRA_ARCHES: dict[str, str] = {
    "SRFormer": "layers.0.residual_group.blocks.0.attn.aligned_relative_position_index",
    "AdaCode": "weight_predictor.blocks.0.swin_blks.0.residual_group.blocks.0.norm1.weight",
    "FeMaSR": "multiscale_encoder.in_conv.weight",
    "Restormer": "encoder_level1.0.attn.qkv_dwconv.weight",
    "MPRNet": "stage3_orsnet.orb1.body.0.body.0.weight",
    "MIRNet2": "body.0.body.0.dau_top.gcnet.conv_mask.weight",
    "M3SNet": "middle_blks.0.qkv_dwconv.weight",
}
"""Those of them that enlarge or restore, each with an entry that its files alone have."""


class UnknownArchitecture(Exception):
    """The weights are of no architecture that is installed; says which would be needed."""


def build(weights: dict[str, Tensor]) -> ModelDescriptor:
    """The network of these weights, on the CPU.

    Raises:
        UnknownArchitecture: see there.
        Exception: spandrel guesses sizes from shapes: a bad file fails in any way.
    """
    extra = _extra_registry()
    missing = None if extra else _extra_architecture(weights)
    if missing:
        raise UnknownArchitecture(f"is of {missing}, which needs {EXTRA}: see the README")
    registry = ArchRegistry()
    for each in (MAIN_REGISTRY, extra) if extra else (MAIN_REGISTRY,):
        registry.add(*each)
    try:
        return ModelLoader("cpu", registry).load_from_state_dict(weights)
    except UnsupportedModelError as error:
        found = ", ".join([str(name) for name in weights][:3])
        raise UnknownArchitecture(
            f"is of no known architecture; {len(weights)} entries ({found} ...)"
        ) from error


def _extra_registry() -> ArchRegistry | None:
    """None where the extra is not installed."""
    try:
        return cast(ArchRegistry, import_module("spandrel_extra_arches").EXTRA_REGISTRY)
    except ModuleNotFoundError:
        return None


def _extra_architecture(weights: Mapping[str, object]) -> str | None:
    """The architecture of the extra that the weights are of, wrapped or not."""
    inner = [value for value in weights.values() if isinstance(value, dict)]
    for entries in (weights, *inner):
        for name, entry in _EXTRA_ARCHES.items():
            if entry in entries:
                return name
    return None
