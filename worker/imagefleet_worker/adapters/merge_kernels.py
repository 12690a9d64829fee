"""Computes merged weights: many parameters per call, or one parameter in blocks of rows."""

# Torch's multi-tensor kernels are not public, but on a GPU launching 700 single kernels would take
# longer than running them.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from imagefleet_shared.errors import IncompatibleAdapter
from imagefleet_worker.adapters.delta import Adapter, Target
from imagefleet_worker.adapters.scaled import Terms

# Elements per group on a GPU; on a CPU, one parameter at a time needs the least memory.
_GROUP_ELEMENTS = 32 * 2**20
# In float32: two or three blocks fit a core's cache, and a product of this size amortizes its
# setup. Measured on SD 1.5's UNet with rank 128: a quarter of it takes 1.15 times as long;
# whole matrices above 32 MiB, where glibc maps new pages for every tensor, take several times as
# long.
_BLOCK_ELEMENTS = 2**19


@runtime_checkable
class RowwiseDelta(Protocol):
    """A delta that is a product of two matrices, so that rows can be computed separately."""

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """Two matrices and a factor whose product is the delta, flattened to two dimensions.

        Returns:
            `(rows, rank)` and `(rank, columns)`, of any dtype, on the CPU; and the factor.
        """
        ...


def rowwise_terms(
    target: Target, terms: Terms, adapters: Mapping[str, Adapter]
) -> list[tuple[RowwiseDelta, float]]:
    """A parameter's deltas with their scales; empty if any of them is not row-wise."""
    deltas = [(adapters[sha256].deltas[target], scale) for sha256, scale in terms]
    rowwise: list[tuple[RowwiseDelta, float]] = [
        (delta, scale) for delta, scale in deltas if isinstance(delta, RowwiseDelta)
    ]
    return rowwise if len(rowwise) == len(deltas) else []


def write_rowwise(
    parameter: Tensor,
    original: Tensor,
    max_abs: Tensor,
    terms: Sequence[tuple[RowwiseDelta, float]],
) -> Tensor:
    """Write the original plus scaled deltas, summed in float32, in blocks of rows.

    Args:
        parameter: written in place, rounding once.
        original: of the same shape, dtype and device.
        max_abs: the largest absolute value of the original, a scalar tensor.
        terms: deltas and scales.

    Returns:
        An upper bound of the sum's absolute values, computed without reading them.
    """
    factors = [(*delta.factors(), scale) for delta, scale in terms]
    # Concatenated, the factors of all terms form one product, and each block is written once.
    left = torch.cat([left.float() * (factor * scale) for left, _, factor, scale in factors], 1)
    right = torch.cat([right.T.to(torch.float32) for _, right, *_ in factors], 1)
    rows = max(1, _BLOCK_ELEMENTS // right.shape[0])
    for destination, original_rows, left_rows in zip(
        parameter.split(rows), original.split(rows), left.split(rows), strict=True
    ):
        total = _add_product(original_rows.float().flatten(1), left_rows, right)
        destination.copy_(total.view(destination.shape))
    # By Cauchy-Schwarz, an element is at most its row's norm times its column's norm.
    row_norm, column_norm = (
        torch.linalg.vector_norm(matrix, dim=1).max() for matrix in (left, right)
    )
    return max_abs + row_norm * column_norm


def _add_product(summand: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`summand + left @ right.T`, float32.

    Uses oneDNN if available: `addmm` calls MKL, which takes twice as long on AMD processors. The
    operator is not public, but torch's own compiler emits this call.
    """
    if torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise.binary(left, summand, right, None, "add")
    return torch.addmm(summand, left, right.T)


def group_targets(
    parameters: Mapping[Target, Tensor], terms: Mapping[Target, Terms]
) -> Iterator[list[Target]]:
    """Groups to compute at once: of the same number of terms, device, dtype and dimensions."""

    def kind(target: Target) -> tuple[str, str, int, int]:
        parameter = parameters[target]
        return str(parameter.device), str(parameter.dtype), parameter.ndim, len(terms[target])

    for (device, *_), targets in groupby(sorted(parameters, key=kind), key=kind):
        limit = 1 if device == "cpu" else _GROUP_ELEMENTS
        group: list[Target] = []
        elements = 0
        for target in targets:
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
        originals: their original values, float32.

    Returns:
        The norm of each sum, an upper bound of its absolute values.
    """
    sums = list(originals)
    for index in range(min(len(terms[target]) for target in parameters)):
        current = {target: terms[target][index] for target in parameters}
        deltas = [
            _delta(target, adapters[sha256], original)
            for (target, (sha256, _)), original in zip(current.items(), originals, strict=True)
        ]
        torch._foreach_mul_(deltas, [scale for _, scale in current.values()])
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
