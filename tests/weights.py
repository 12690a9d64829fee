"""Bitwise comparison of module weights, and the expected weights with merged adapters."""

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
    """A fresh copy of a small UNet, channels last, and its text encoders."""
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
    """Targets whose tensors are not bitwise equal."""
    return [
        target
        for target, tensor in tensors_of(modules).items()
        if not torch.equal(_bytes(tensor), _bytes(others[target]))
    ]


def layout(modules: Modules) -> dict[Target, tuple[int, tuple[int, ...]]]:
    """Address and strides of each tensor."""
    return {
        target: (tensor.data_ptr(), tensor.stride())
        for target, tensor in tensors_of(modules).items()
    }


def wrongly_merged(
    modules: Modules, pristine: Mapping[Target, Tensor], adapters: Sequence[ScaledAdapter]
) -> list[Target]:
    """Targets whose weights are not the result of merging these adapters.

    Weights without a delta must be bitwise unchanged; others must equal the sum in float64, up to
    float32's summation error and one rounding.
    """
    return [
        target
        for target, tensor in tensors_of(modules).items()
        if not _is_merged(tensor, pristine[target], target, adapters)
    ]


def _is_merged(
    tensor: Tensor, original: Tensor, target: Target, adapters: Sequence[ScaledAdapter]
) -> bool:
    scales = [
        (item, item.unet_scale if target.component == "unet" else item.text_encoder_scale)
        for item in adapters
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
