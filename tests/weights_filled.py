"""Deterministic weights that are the same on every machine: sine waves."""

import torch
from torch import Tensor, nn


def filled_with_waves(network: nn.Module) -> dict[str, Tensor]:
    """A state dict of the network's names and shapes; variances stay above a half."""
    weights: dict[str, Tensor] = {}
    for index, (name, tensor) in enumerate(sorted(network.state_dict().items())):
        if not tensor.dtype.is_floating_point:
            weights[name] = torch.zeros_like(tensor)
            continue
        steps = torch.arange(tensor.numel(), dtype=torch.float64)
        wave = torch.sin(steps * 1.7 + index).float().reshape(tensor.shape)
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
        is_variance = name.endswith("running_var")
        weights[name] = 1 + 0.5 * wave if is_variance else wave / fan_in**0.5
    return weights
