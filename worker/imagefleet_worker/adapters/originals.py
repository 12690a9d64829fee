"""Saved copies of the base weights of every parameter that an adapter has changed."""

# Torch's multi-tensor kernels are not public.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagefleet_worker.adapters.delta import Target

# Values are compared as integers, because -0.0 == 0.0 and NaN != NaN.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# In elements: slices of a shared buffer are aligned for vectorized kernels.
_ALIGNMENT = 64


class StateCorrupted(Exception):
    """Weights differ from their saved copies after a restore: reload the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SavedBytes:
    """Sizes of the saved copies."""

    device: int
    """On the parameters' device: in GPU memory, or in host memory for a pipeline on the CPU."""
    pinned: int
    """In pinned host memory, for parameters on a GPU."""


class Originals:
    """Saves parameters before their first change, and restores them bit for bit.

    Args:
        device_budget_bytes: for copies on the parameters' device; further copies go to pinned host
            memory. No limit for parameters on the CPU.
    """

    def __init__(self, device_budget_bytes: int) -> None:
        self._device_budget_bytes = device_budget_bytes
        self._device_bytes = 0
        self._pinned_bytes = 0
        self._saved: dict[Target, tuple[nn.Parameter, Tensor]] = {}
        self._max_abs: dict[Target, Tensor] = {}

    @property
    def saved_bytes(self) -> SavedBytes:
        return SavedBytes(device=self._device_bytes, pinned=self._pinned_bytes)

    def save(self, target: Target, parameter: nn.Parameter) -> None:
        """Copy a parameter, unless it is already saved.

        Args:
            parameter: must have its original value and stay the same object; its storage may move.
        """
        if target in self._saved:
            return
        weight = parameter.detach()
        fits = self._device_bytes + weight.nbytes <= self._device_budget_bytes
        if fits or not weight.is_cuda:
            self._saved[target] = (parameter, weight.clone())
            self._device_bytes += weight.nbytes
            return
        pinned = torch.empty_like(weight, device="cpu", pin_memory=True)
        self._saved[target] = (parameter, pinned.copy_(weight))
        self._pinned_bytes += weight.nbytes

    def clear(self) -> None:
        """Discard all copies; every parameter must have its original value."""
        self._saved.clear()
        self._max_abs.clear()
        self._device_bytes = self._pinned_bytes = 0

    def __getitem__(self, target: Target) -> Tensor:
        """The saved copy, which must not be modified."""
        return self._saved[target][1]

    def max_abs(self, target: Target) -> Tensor:
        """The largest absolute value of the saved copy, a scalar tensor; computed once."""
        if target not in self._max_abs:
            self._max_abs[target] = self._saved[target][1].float().abs().max()
        return self._max_abs[target]

    def restore(self, targets: Iterable[Target]) -> None:
        """Copy the originals back in place; storage and strides are unchanged."""
        pairs = [self._saved[target] for target in targets]
        if pairs:
            # One multi-tensor call: on a GPU, 700 launches would take longer than the copies.
            torch._foreach_copy_([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def scratch(self, groups: Sequence[Sequence[Target]]) -> dict[torch.device, Tensor]:
        """Buffers that `float32` needs for any one of the groups, one for each of their devices."""
        elements = max(
            (sum(_aligned(self._saved[target][0].numel()) for target in group) for group in groups),
            default=0,
        )
        devices = {self._saved[target][0].device for group in groups for target in group}
        return {
            device: torch.empty(elements, dtype=torch.float32, device=device) for device in devices
        }

    def float32(self, targets: Sequence[Target], scratch: Tensor) -> list[Tensor]:
        """The originals in float32, on their parameters' device, as views of `scratch`.

        Args:
            scratch: from `scratch`, for that device. Allocating each time would be slower: above
                32 MiB, glibc maps new pages.
        """
        views: list[Tensor] = []
        saved: list[Tensor] = []
        offset = 0
        for target in targets:
            parameter, original = self._saved[target]
            views.append(scratch.as_strided(parameter.size(), parameter.stride(), offset))
            saved.append(original)
            offset += _aligned(parameter.numel())
        torch._foreach_copy_(views, saved)
        return views

    def differing(self, targets: Iterable[Target]) -> list[Target]:
        """The targets whose parameters differ from the saved copy in any bit."""
        return [target for target in targets if not _bitwise_equal(*self._saved[target])]

    def __iter__(self) -> Iterator[Target]:
        return iter(self._saved)


def _aligned(elements: int) -> int:
    return -(-elements // _ALIGNMENT) * _ALIGNMENT


def _bitwise_equal(parameter: nn.Parameter, saved: Tensor) -> bool:
    weight = parameter.detach()
    if weight.dtype != saved.dtype or weight.shape != saved.shape:
        return False
    bits = _BITS[saved.itemsize]
    return torch.equal(weight.view(bits), saved.to(weight.device).view(bits))
