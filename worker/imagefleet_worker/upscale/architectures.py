"""Architectures of upscaler files."""

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
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
"""Installs `spandrel_extra_arches`: architectures under copyleft or non-commercial licences."""

_EXTRA_PACKAGE = "spandrel_extra_arches"
_EXTRA_ARCHITECTURES: dict[str, str] = {
    "SRFormer": "layers.0.residual_group.blocks.0.attn.aligned_relative_position_index",
    "AdaCode": "weight_predictor.blocks.0.swin_blks.0.residual_group.blocks.0.norm1.weight",
    "FeMaSR": "multiscale_encoder.in_conv.weight",
    "Restormer": "encoder_level1.0.attn.qkv_dwconv.weight",
    "MPRNet": "stage3_orsnet.orb1.body.0.body.0.weight",
    "MIRNet2": "body.0.body.0.dau_top.gcnet.conv_mask.weight",
    "M3SNet": "middle_blks.0.qkv_dwconv.weight",
}
"""Its upscalers and restorers, each with a state-dict key that no other architecture has."""


class UnknownArchitecture(Exception):
    """No installed architecture matches the weights; the message names the package that has it."""


def build_descriptor(weights: dict[str, Tensor]) -> ModelDescriptor:
    """Build the network of these weights, on the CPU.

    Raises:
        UnknownArchitecture: no installed architecture matches.
        Exception: any type; spandrel infers sizes from shapes.
    """
    for registry in (lambda: MAIN_REGISTRY, _extra_registry):
        # The extra is tried last: it takes a second to import.
        with suppress(UnsupportedModelError):
            # spandrel empties the dictionary that it reads.
            return ModelLoader("cpu", registry()).load_from_state_dict(dict(weights))
    missing = None if find_spec(_EXTRA_PACKAGE) else _extra_architecture(weights)
    if missing:
        raise UnknownArchitecture(f"is of {missing}, which needs {EXTRA}: see the README")
    found = ", ".join([str(name) for name in weights][:3])
    raise UnknownArchitecture(f"is of no known architecture; {len(weights)} entries ({found} ...)")


def _extra_registry() -> ArchRegistry:
    """The registry of the extra; empty if it is not installed."""
    if find_spec(_EXTRA_PACKAGE) is None:
        return ArchRegistry()
    return cast(ArchRegistry, import_module(_EXTRA_PACKAGE).EXTRA_REGISTRY)


def _extra_architecture(weights: Mapping[str, object]) -> str | None:
    """The extra architecture that matches the weights, nested in another dictionary or not."""
    inner = [value for value in weights.values() if isinstance(value, dict)]
    for entries in (weights, *inner):
        for name, entry in _EXTRA_ARCHITECTURES.items():
            if entry in entries:
                return name
    return None
