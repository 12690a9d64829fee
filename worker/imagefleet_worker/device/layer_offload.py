"""Sequential offload: weights stay in host memory; a layer's are on the device while it runs.

accelerate's version replaces the weights with empty tensors and restores them from a copy made at
the start, which lacks adapters merged later. Here a running layer gets temporary copies on the
device, and adapters are merged into the weights in host memory.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module, Parameter


def offload_layers(network: Module, device: torch.device) -> None:
    """Run each layer of a network on the device, with temporary copies of its weights.

    Between calls every parameter and buffer is the same object, in the same memory. Copies are
    asynchronous: synchronize the device before weights are changed.

    Args:
        network: in host memory, preferably pinned; callers move their inputs to the device.
        device: to run on.
    """
    for layer in network.modules():
        if _direct_tensors(layer):
            hooks = _LayerHooks(device)
            layer.register_forward_pre_hook(hooks.load)
            layer.register_forward_hook(hooks.unload, always_call=True)


class _LayerHooks:
    """Hooks of a layer that swap its weights for copies on the device while it runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host_tensors: Mapping[str, Tensor] = {}

    def load(self, layer: Module, args: object) -> None:
        tensors = _direct_tensors(layer)
        copies = {
            name: torch.empty_like(tensor, device=self._device).copy_(tensor, non_blocking=True)
            for name, tensor in tensors.items()
        }
        self._host_tensors = tensors
        for name, copy in copies.items():
            is_parameter = isinstance(tensors[name], Parameter)
            setattr(layer, name, Parameter(copy, requires_grad=False) if is_parameter else copy)

    def unload(self, layer: Module, args: object, output: object) -> None:
        for name, tensor in self._host_tensors.items():
            setattr(layer, name, tensor)
        self._host_tensors = {}


def _direct_tensors(layer: Module) -> dict[str, Tensor]:
    """A layer's parameters and buffers by name, without those of its submodules."""
    parameters: dict[str, Tensor] = dict(layer.named_parameters(recurse=False))
    return parameters | dict(layer.named_buffers(recurse=False))
