"""Sequential offload: weights rest in host memory, and a layer's are on the device as it runs.

accelerate's own puts empty tensors in the place of the weights and fills them from a copy it made
before, without what was merged since. Here a layer borrows memory on the device, and its weights
stay where adapters are merged into them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module, Parameter


def offload_layers(network: Module, device: torch.device) -> None:
    """Have each layer of a network run on the device, its weights there only meanwhile.

    Before and after, every parameter and buffer is the one that it was, where it was. Copies are
    queued on the device behind what runs there: synchronise before weights are changed.

    Args:
        network: in host memory, best page-locked; its callers bring their inputs to the device.
        device: where it is to run.
    """
    for layer in network.modules():
        if _own(layer):
            visit = _LayerVisit(device)
            layer.register_forward_pre_hook(visit.begin)
            layer.register_forward_hook(visit.end, always_call=True)


class _LayerVisit:
    """A layer's weights on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at_home: Mapping[str, Tensor] = {}

    def begin(self, layer: Module, given: object) -> None:
        own = _own(layer)
        copies = {
            name: torch.empty_like(tensor, device=self._device).copy_(tensor, non_blocking=True)
            for name, tensor in own.items()
        }
        self._at_home = own
        for name, copy in copies.items():
            parameter = isinstance(own[name], Parameter)
            setattr(layer, name, Parameter(copy, requires_grad=False) if parameter else copy)

    def end(self, layer: Module, given: object, made: object) -> None:
        for name, tensor in self._at_home.items():
            setattr(layer, name, tensor)
        self._at_home = {}


def _own(layer: Module) -> dict[str, Tensor]:
    """A layer's weights and buffers by name, without those of the layers in it."""
    own: dict[str, Tensor] = dict(layer.named_parameters(recurse=False))
    return own | dict(layer.named_buffers(recurse=False))
