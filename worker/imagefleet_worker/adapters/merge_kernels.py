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
from imagefleet_worker.adapters.scaled import Terms

# A GPU takes many parameters a launch; on a CPU, one at a time needs the least memory.
_GROUP_ELEMENTS = 32 * 2**20
# Of float32: two or three blocks fit a core's own cache, and a product of so many rows is worth its
# preparation. Measured on SD 1.5's UNet, rank 128: a quarter of it takes 1.15 times the time; whole
# matrices, beyond 32 MiB, where glibc maps every tensor's pages anew, several times.
_BLOCK_ELEMENTS = 2**19


@runtime_checkable
class RowwiseDelta(Protocol):
    """A delta that is a product of two matrices, so that some of its rows cost only their share."""

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """Two matrices and a factor whose product is what `of` gives, all axes but the first one.

        Returns:
            `(rows, rank)` and `(rank, columns)`, of any dtype, on the CPU; and the factor.
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
    parameter: Tensor,
    original: Tensor,
    largest: Tensor,
    terms: Sequence[tuple[RowwiseDelta, float]],
) -> Tensor:
    """Write the original plus scaled deltas, summed in float32, some rows after the other.

    Args:
        parameter: written in place, rounding once.
        original: of its shape and dtype, on its device.
        largest: what no value of the original exceeds, no dimensions.
        terms: deltas and scales.

    Returns:
        What no value of the sum exceeds; it costs no look at them.
    """
    factors = [(*delta.factors(), scale) for delta, scale in terms]
    # Side by side the factors of all terms make one product, and each block is written once.
    left = torch.cat([left.float() * (own * scale) for left, _, own, scale in factors], 1)
    right = torch.cat([right.T.to(torch.float32) for _, right, *_ in factors], 1)
    rows = max(1, _BLOCK_ELEMENTS // right.shape[0])
    for destination, block, part in zip(
        parameter.split(rows), original.split(rows), left.split(rows), strict=True
    ):
        total = _plus_product(block.float().flatten(1), part, right)
        destination.copy_(total.view(destination.shape))
    # A product's value is at most its row's norm times its column's (Cauchy and Schwarz).
    row, column = (torch.linalg.vector_norm(factor, dim=1).max() for factor in (left, right))
    return largest + row * column


def _plus_product(summand: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`summand + left @ right.T`, float32.

    By oneDNN where torch has it: `addmm` asks MKL, which takes twice the time on AMD's processors.
    Torch has no public name for it, but its own compiler emits this call.
    """
    if torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise.binary(left, summand, right, None, "add")
    return torch.addmm(summand, left, right.T)


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
        Of each sum its norm, which no value in it exceeds.
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
