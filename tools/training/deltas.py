"""Low-rank deltas on a frozen model's weights, trained in place and saved in kohya's names."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Kind = Literal["lora", "loha"]

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


class LowRank(nn.Module):
    """Adds `up @ down` to a matrix or kernel (arXiv 2106.09685); initially zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.shape = tuple(weight.shape)
        self.down = nn.Parameter(torch.empty(rank, weight[0].numel()))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by the suffix of their key in the file."""
        out, inner, *kernel = self.shape
        ones = [1] * len(kernel)
        return {
            "lora_down.weight": self.down.view(self.rank, inner, *kernel),
            "lora_up.weight": self.up.view(out, self.rank, *ones),
        }


class Hadamard(nn.Module):
    """Adds the element-wise product of two low-rank matrices (LoHa, arXiv 2108.06098)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.shape = tuple(weight.shape)
        out, inner = weight.shape[0], weight[0].numel()
        self.w1_a = nn.Parameter(torch.randn(out, rank) * 0.1)
        self.w1_b = nn.Parameter(torch.randn(rank, inner))
        self.w2_a = nn.Parameter(torch.zeros(out, rank))
        self.w2_b = nn.Parameter(torch.randn(rank, inner))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by the suffix of their key in the file."""
        return {f"hada_{name}": tensor for name, tensor in self.named_parameters()}


def attach(model: nn.Module, kind: Kind, rank: int) -> dict[str, LowRank | Hadamard]:
    """Parametrize the weights of all linear layers and convolutions; returns deltas by module."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    deltas: dict[str, LowRank | Hadamard] = {}
    for name, module in layers.items():
        delta = (LowRank if kind == "lora" else Hadamard)(module.weight, rank).to(
            module.weight.device
        )
        parametrize.register_parametrization(module, "weight", delta)
        deltas[name] = delta
    return deltas


def kohya_state_dict(component: str, deltas: dict[str, LowRank | Hadamard]) -> dict[str, Tensor]:
    """The deltas in float16, in kohya's names."""
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        key = PREFIXES[component] + name.removeprefix("text_model.").replace(".", "_")
        for suffix, tensor in delta.tensors().items():
            tensors[f"{key}.{suffix}"] = tensor.detach().cpu().half().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(delta.rank)).half()
    return tensors
