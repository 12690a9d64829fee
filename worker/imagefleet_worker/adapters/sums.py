"""Merged values: of many parameters in a call, or of a parameter in rows."""

# Torch has no public name for its multi-tensor kernels, and on a GPU the launches of 700 single
# ones would take longer than their work.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from imagefleet_shared.errors import IncompatibleAdapter
from imagefleet_worker.adapters.delta import Adapter, Target
from imagefleet_worker.adapters.wanted import Terms

# A GPU takes many parameters a launch; on a CPU, one at a time needs the least memory.
_GROUP_ELEMENTS = 32 * 2**20
# Of float32, so that a block stays in a core's own cache. Measured on SD 1.5's UNet: whole matrices
# take 1.7 times the time; beyond 32 MiB, where glibc maps every tensor's pages anew, 7 times.
_BLOCK_ELEMENTS = 2**17


@runtime_checkable
class RowwiseDelta(Protocol):
    """A delta that can also be had some rows at a time."""

    def blocks(self, original: Tensor, rows: int) -> Iterator[Tensor]:
        """What `of` gives, as its `split(rows)`: float32, each owned by the caller.

        Args:
            original: of any dtype; only its shape and device are read.
        """
        ...


def rowwise_terms(
    target: Target, terms: Terms, adapters: Mapping[str, Adapter]
) -> list[tuple[RowwiseDelta, float]]:
    """A parameter's deltas with their scales; empty if one of them is not row-wise."""
    deltas = [(adapters[sha256].deltas[target], scale) for sha256, scale in terms]
    rowwise: list[tuple[RowwiseDelta, float]] = [
        (delta, scale) for delta, scale in deltas if isinstance(delta, RowwiseDelta)
    ]
    return rowwise if len(rowwise) == len(deltas) else []


def write_in_rows(
    parameter: Tensor, original: Tensor, terms: Sequence[tuple[RowwiseDelta, float]]
) -> Tensor:
    """Write the original plus scaled deltas, summed in float32, some rows after the other.

    Args:
        parameter: written in place, rounding once.
        original: of its shape and dtype, on its device.
        terms: deltas and scales.

    Returns:
        Norms of the sums, which no value in them exceeds.
    """
    rows = max(1, _BLOCK_ELEMENTS // original[0].numel())
    sources = [delta.blocks(original, rows) for delta, _ in terms]
    norms: list[Tensor] = []
    for destination, block, *deltas in zip(
        parameter.split(rows), original.split(rows), *sources, strict=True
    ):
        total = block.float()
        for delta, (_, scale) in zip(deltas, terms, strict=True):
            total = delta.mul_(scale).add_(total)
        destination.copy_(total)
        norms.append(torch.linalg.vector_norm(total))
    return torch.stack(norms)


def grouped(
    parameters: Mapping[Target, Tensor], terms: Mapping[Target, Terms]
) -> Iterator[list[Target]]:
    """What is computed at once: as many terms each, and alike in what multi-tensor kernels need."""

    def kind(target: Target) -> tuple[str, str, int, int]:
        parameter = parameters[target]
        return str(parameter.device), str(parameter.dtype), parameter.ndim, len(terms[target])

    for (device, *_), alike in groupby(sorted(parameters, key=kind), key=kind):
        limit = 1 if device == "cpu" else _GROUP_ELEMENTS
        group: list[Target] = []
        elements = 0
        for target in alike:
            group.append(target)
            elements += parameters[target].numel()
            if elements >= limit:
                yield group
                group, elements = [], 0
        if group:
            yield group


def write_merged(
    parameters: Mapping[Target, Tensor],
    originals: Sequence[Tensor],
    terms: Mapping[Target, Terms],
    adapters: Mapping[str, Adapter],
) -> Tensor:
    """Write originals plus scaled deltas, summed in float32, to a group's parameters.

    Args:
        parameters: of one group; written in place, rounding once.
        originals: theirs, float32.

    Returns:
        The norm of each sum, which no value in it exceeds.
    """
    sums = list(originals)
    for place in range(min(len(terms[target]) for target in parameters)):
        named = {target: terms[target][place] for target in parameters}
        deltas = [
            _delta(target, adapters[sha256], original)
            for (target, (sha256, _)), original in zip(named.items(), originals, strict=True)
        ]
        torch._foreach_mul_(deltas, [scale for _, scale in named.values()])
        torch._foreach_add_(deltas, sums)
        sums = deltas
    torch._foreach_copy_(list(parameters.values()), sums)
    return torch.stack(torch._foreach_norm(sums))


def _delta(target: Target, adapter: Adapter, original: Tensor) -> Tensor:
    delta = adapter.deltas[target].of(original)
    if delta.shape != original.shape:
        raise IncompatibleAdapter(
            f"{target.component}.{target.parameter} is {list(original.shape)}, but adapter "
            f"{adapter.sha256[:12]} adds {list(delta.shape)}"
        )
    return delta
