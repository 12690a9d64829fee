"""Adapters with seeded random deltas of several forms, for tests of how they are merged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor, nn

from imagefleet_worker.adapters.delta import Adapter, Component, Delta, Target


@dataclass
class FailAfter:
    """Makes deltas raise `error` once, after `remaining` more of them; None: never."""

    remaining: int | None = None
    error: BaseException = field(default_factory=RuntimeError)

    def count(self) -> None:
        """Count one computed delta, or raise."""
        if self.remaining is None:
            return
        if self.remaining == 0:
            self.remaining = None
            raise self.error
        self.remaining -= 1


@dataclass(eq=False)
class LowRank:
    """``up @ down``, as of a LoRA."""

    up: Tensor
    down: Tensor
    fail_after: FailAfter
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = self.up.nbytes + self.down.nbytes

    def of(self, original: Tensor) -> Tensor:
        self.fail_after.count()
        up, down = self.up.to(original.device), self.down.to(original.device)
        return (up.float() @ down.float()).view(original.shape)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        self.fail_after.count()
        return self.up, self.down, 1.0


@dataclass(eq=False)
class Relative:
    """``original * factor``, as of IA3: it depends on the original."""

    factor: Tensor
    fail_after: FailAfter
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = self.factor.nbytes

    def of(self, original: Tensor) -> Tensor:
        self.fail_after.count()
        return original * self.factor.to(original.device)


@dataclass(eq=False)
class Whole:
    """The delta itself, as of a full difference."""

    tensor: Tensor
    fail_after: FailAfter
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = self.tensor.nbytes

    def of(self, original: Tensor) -> Tensor:
        self.fail_after.count()
        return self.tensor.to(original.device, copy=True)


def adapter_of(sha256: str, deltas: Mapping[Target, Delta]) -> Adapter:
    """An adapter of these deltas."""
    return Adapter(sha256, deltas, sum(delta.size_bytes for delta in deltas.values()))


def targets_of(components: Mapping[Component, nn.Module]) -> list[Target]:
    """Every parameter."""
    return [
        Target(component, name)
        for component, module in components.items()
        for name, _ in module.named_parameters()
    ]


def linear_targets(component: Component, unet: nn.Module) -> list[Target]:
    """The weights of all linear layers in attention and feed-forward blocks."""
    return [
        Target(component, f"{name}.weight")
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and (".attn" in name or ".ff." in name)
    ]


def random_lora(
    sha256: str,
    components: Mapping[Component, nn.Module],
    targets: Iterable[Target],
    rank: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Low-rank deltas, about a tenth as large as the weights."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[Target, Delta] = {}
    for target in targets:
        shape = components[target.component].get_parameter(target.parameter).shape
        up = torch.randn(shape[0], rank, generator=generator).mul_(0.003)
        down = torch.randn(rank, shape[1:].numel(), generator=generator).div_(rank**0.5)
        deltas[target] = LowRank(up.to(dtype), down.to(dtype), FailAfter())
    return adapter_of(sha256, deltas)


def random_mixture(
    sha256: str,
    components: Mapping[Component, nn.Module],
    targets: Iterable[Target],
    seed: int,
    fail_after: FailAfter,
) -> Adapter:
    """Deltas of every form in turn, on parameters of any shape; all share one `FailAfter`."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[Target, Delta] = {}
    for target, form in zip(targets, cycle(("low rank", "relative", "whole")), strict=False):
        shape = components[target.component].get_parameter(target.parameter).shape
        if form == "low rank" and len(shape) > 1:
            up = torch.randn(shape[0], 4, generator=generator).mul_(0.01)
            down = torch.randn(4, shape[1:].numel(), generator=generator)
            deltas[target] = LowRank(up, down, fail_after)
        elif form == "relative":
            deltas[target] = Relative(torch.randn(shape, generator=generator).mul_(0.1), fail_after)
        else:
            deltas[target] = Whole(torch.randn(shape, generator=generator).mul_(0.01), fail_after)
    return adapter_of(sha256, deltas)
