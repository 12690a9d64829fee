"""Comparing the weights of modules bit for bit, and what they should be with adapters on."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn

from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.adapters.wanted import ScaledAdapter
from imagefleet_worker.models.families import Family
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


def expected(
    pristine: Mapping[Target, Tensor], wanted: Sequence[ScaledAdapter]
) -> dict[Target, Tensor]:
    """The weights that these adapters make, from the formula, one operation after the other."""
    merged = dict(pristine)
    for target, weight in pristine.items():
        unet = target.component == "unet"
        terms = sorted(
            (item.adapter.sha256, item.unet_scale if unet else item.text_encoder_scale, index)
            for index, item in enumerate(wanted)
            if target in item.adapter.deltas
        )
        total = original = weight.float() if terms else weight
        for _, scale, index in terms:
            if scale != 0:
                total = total + wanted[index].adapter.deltas[target].of(original) * scale
        merged[target] = total.to(weight.dtype)
    return merged


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
