"""Comparing the weights of modules bit for bit, and what they should be with adapters on."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn

from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.weights.families import Family
from tools.demo_models import demo_models

Modules = Mapping[Component, nn.Module]
_MERGED: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")


@cache
def _demo(family: Family) -> dict[Component, nn.Module]:
    models = demo_models(family, seed=0)
    return {component: models[component] for component in _MERGED if component in models}


def small_modules(family: Family, dtype: torch.dtype) -> dict[Component, nn.Module]:
    """A small UNet, channels last, and its text encoders; nobody else's."""
    return {
        component: deepcopy(module).to(dtype).to(memory_format=torch.channels_last)
        for component, module in _demo(family).items()
    }


def tensors_of(modules: Modules) -> dict[Target, Tensor]:
    """Every parameter and buffer."""
    return {
        Target(component, name): tensor.detach()
        for component, module in modules.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def differing(modules: Modules, others: Mapping[Target, Tensor]) -> list[Target]:
    """Those that are not the same, bit for bit."""
    return [
        target
        for target, tensor in tensors_of(modules).items()
        if not torch.equal(_bytes(tensor), _bytes(others[target]))
    ]


def layout(modules: Modules) -> dict[Target, tuple[int, tuple[int, ...]]]:
    """Where each tensor lies, and its strides."""
    return {
        target: (tensor.data_ptr(), tensor.stride())
        for target, tensor in tensors_of(modules).items()
    }


def off(
    modules: Modules, pristine: Mapping[Target, Tensor], wanted: Sequence[ScaledAdapter]
) -> list[Target]:
    """Those that are not what these adapters make of them.

    What none touches must be the same bit for bit; the others the formula's sum in float64, but for
    float32's error in summing and for one rounding.
    """
    return [
        target
        for target, tensor in tensors_of(modules).items()
        if not _is_merged(tensor, pristine[target], target, wanted)
    ]


def _is_merged(
    tensor: Tensor, original: Tensor, target: Target, wanted: Sequence[ScaledAdapter]
) -> bool:
    scales = [
        (item, item.unet_scale if target.component == "unet" else item.text_encoder_scale)
        for item in wanted
        if target in item.adapter.deltas
    ]
    terms = [
        item.adapter.deltas[target].of(original.float()).double() * scale
        for item, scale in scales
        if scale != 0
    ]
    if not terms:
        return torch.equal(_bytes(tensor), _bytes(original))
    total = original.double() + torch.stack(terms).sum(dim=0)
    largest = original.double().abs() + torch.stack(terms).abs().sum(dim=0)
    kind = torch.finfo(tensor.dtype)
    allowed = kind.eps / 2 * total.abs() + 2e-6 * largest.max() + kind.smallest_normal * kind.eps
    return bool(((tensor.double() - total).abs() <= allowed).all())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
