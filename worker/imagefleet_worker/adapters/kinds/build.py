"""Builds the delta of a parameter from the tensors of a file."""

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor

from imagefleet_worker.adapters.kinds.dora import DoRA
from imagefleet_worker.adapters.kinds.elementwise import IA3, Full, SparseResidual
from imagefleet_worker.adapters.kinds.factors import ShapeMismatch, TensorShape, fits
from imagefleet_worker.adapters.kinds.glora import GLoRA
from imagefleet_worker.adapters.kinds.low_rank import (
    LoHa,
    LoKr,
    LoRADelta,
    LowRank,
    RowwiseLoRADelta,
)
from imagefleet_worker.adapters.kinds.orthogonal import BOFT, OFT
from imagefleet_worker.adapters.kinds.product import Dense, Product
from imagefleet_worker.adapters.kinds.tensors import Incomplete, MetadataAlpha, TensorGroup
from imagefleet_worker.adapters.tensor_roles import TensorRole

AnyDelta = LowRank | DoRA | SparseResidual | GLoRA | Full | IA3 | OFT | BOFT


def weight_delta(
    tensors: Mapping[TensorRole, Tensor], parameter: TensorShape, alpha: MetadataAlpha | None
) -> AnyDelta:
    """Build the delta of a weight from its tensors by role.

    Args:
        tensors: all tensors of the file for this weight.
        parameter: shape of the weight.
        alpha: from the metadata; used if there is no alpha tensor.

    Raises:
        Incomplete: a tensor is missing, or one is not used.
        ShapeMismatch: shapes do not match each other or the weight.
    """
    marker = next((role for role in _BUILDERS if role in tensors), None)
    if marker is None:
        raise Incomplete(f"nothing but {', '.join(sorted(tensors))}")
    group = TensorGroup(tensors, alpha)
    delta = _BUILDERS[marker](group, parameter)
    if group.unused:
        raise Incomplete(f"{', '.join(group.unused)} beside {marker}")
    return delta


def full_delta(tensor: Tensor, parameter: TensorShape) -> Full:
    """A delta that the file stores as a tensor; raises `ShapeMismatch` if it does not fit."""
    delta = Full(tensor)
    _require_fit(delta.shape, parameter)
    return delta


def _low_rank(group: TensorGroup, parameter: TensorShape) -> LowRank | DoRA | SparseResidual:
    if group.has("lora_up") or group.has("lora_down"):
        delta = _lora(group)
    elif group.has("hada_w1_a"):
        delta = _loha(group)
    else:
        delta = _lokr(group)
    _require_fit(delta.shape, parameter)
    if group.has("bias_values"):
        return _sparse_residual(group, delta, parameter)
    magnitude = _magnitude(group, parameter)
    return delta if magnitude is None else DoRA(delta, magnitude)


def _lora(group: TensorGroup) -> LoRADelta:
    product = Product(
        group.take("lora_up"), group.take("lora_down"), group.take_optional("lora_mid")
    )
    kind = RowwiseLoRADelta if product.core is None else LoRADelta
    return kind(product, group.scale(product.rank))


def _loha(group: TensorGroup) -> LoHa:
    first, second = (
        _product(
            group.take(f"hada_w{n}_a"),
            group.take(f"hada_w{n}_b"),
            group.take_optional(f"hada_t{n}"),
        )
        for n in (1, 2)
    )
    return LoHa(first, second, group.scale(first.rank))


def _lokr(group: TensorGroup) -> LoKr:
    first, second = _kron_half(group, 1), _kron_half(group, 2)
    # If neither half is a product, LyCORIS does not apply alpha, though it writes one.
    rank = next((half.rank for half in (second, first) if isinstance(half, Product)), None)
    scale = group.scale(rank or 1)
    return LoKr(first, second, 1.0 if rank is None else scale)


def _kron_half(group: TensorGroup, n: int) -> Product | Dense:
    if group.has(f"lokr_w{n}"):
        return Dense(group.take(f"lokr_w{n}"))
    return _product(
        group.take(f"lokr_w{n}_a"), group.take(f"lokr_w{n}_b"), group.take_optional(f"lokr_t{n}")
    )


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Product:
    # With a core, LyCORIS stores the left factor transposed, in LoHa and LoKr.
    return Product(a if core is None else a.transpose(0, 1), b, core)


def _magnitude(group: TensorGroup, parameter: TensorShape) -> Tensor | None:
    """DoRA's magnitude, shaped to broadcast over the weight; None if there is none."""
    per_output, either = group.take_optional("magnitude"), group.take_optional("dora_scale")
    if per_output is None and either is not None and either.ndim > 1:
        return _per_output_or_input(either, parameter)
    magnitude = either if per_output is None else per_output
    if magnitude is None:
        return None
    if magnitude.numel() != parameter[0]:
        raise ShapeMismatch(f"a magnitude for each output, for a weight of {list(parameter)}")
    return magnitude.reshape(-1, *[1] * (len(parameter) - 1))


def _per_output_or_input(magnitude: Tensor, parameter: TensorShape) -> Tensor:
    shape = tuple(magnitude.shape)
    # Uses the weight's shape, as LyCORIS' LoHa and LoKr factors have the kernel flattened.
    sides = ((parameter[0], 1), (1, parameter[1])) if len(parameter) > 1 else ()
    if not any(fits(shape, side) for side in sides):
        raise ShapeMismatch(f"magnitude of shape {shape} for a weight of {list(parameter)}")
    return magnitude


def _sparse_residual(group: TensorGroup, delta: LowRank, parameter: TensorShape) -> SparseResidual:
    indices = group.take("bias_indices").long()
    size = group.take("bias_size").tolist()
    if indices.ndim != 2 or len(indices) != 2 or size != [parameter[0], prod(parameter[1:])]:
        raise ShapeMismatch(f"sparse values of {size} for a weight of {list(parameter)}")
    return SparseResidual(delta, indices[0], indices[1], group.take("bias_values"))


def _glora(group: TensorGroup, parameter: TensorShape) -> GLoRA:
    a1, a2, b1, b2 = (group.take(role) for role in ("a1", "a2", "b1", "b2"))
    # LyCORIS once had the factors in reverse order, as A1111 still does. The weight's shape tells
    # them apart, except for square weights, which are assumed to be newer.
    is_newer = (a1.shape[0], b1.shape[0]) == (parameter[1], parameter[0])
    on_weight, added = (
        (Product(a1, a2), Product(b1, b2)) if is_newer else (Product(a2, a1), Product(b2, b1))
    )
    delta = GLoRA(on_weight, added, group.scale(on_weight.rank))
    _require_fit(delta.shape, parameter)
    return delta


def _ia3(group: TensorGroup, parameter: TensorShape) -> IA3:
    factor, on_input = group.take("ia3"), bool(group.take_number("on_input"))
    if factor.numel() != parameter[1 if on_input else 0]:
        side = "inputs" if on_input else "outputs"
        raise ShapeMismatch(f"{list(factor.shape)} for the {side} of a weight of {list(parameter)}")
    return IA3(factor, on_input)


def _oft(group: TensorGroup, parameter: TensorShape) -> OFT | BOFT:
    is_rotation = group.has("oft_diag")
    blocks = group.take("oft_diag" if is_rotation else "oft_blocks")
    rescale = group.take_optional("rescale")
    constraint = (group.take_number("alpha") or 0.0) * parameter[0]
    if blocks.ndim == 4:
        delta = BOFT(blocks, constraint, rescale)
    else:
        delta = OFT(blocks, is_rotation, 0.0 if is_rotation else constraint, rescale)
    if delta.outputs != parameter[0]:
        raise ShapeMismatch(f"blocks of {list(blocks.shape)} for a weight of {list(parameter)}")
    return delta


def _full(group: TensorGroup, parameter: TensorShape) -> Full:
    return full_delta(group.take("diff" if group.has("diff") else "w_norm"), parameter)


def _require_fit(delta: TensorShape, parameter: TensorShape) -> None:
    if not fits(delta, parameter):
        raise ShapeMismatch(f"{list(delta)} for a weight of {list(parameter)}")


# By a role that identifies the kind; several for low-rank kinds, so that errors can name the
# missing one.
_BUILDERS: dict[TensorRole, Callable[[TensorGroup, TensorShape], AnyDelta]] = {
    **dict.fromkeys(("lora_up", "lora_down", "hada_w1_a"), _low_rank),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"), _low_rank),
    "a1": _glora,
    "on_input": _ia3,
    "oft_blocks": _oft,
    "oft_diag": _oft,
    "diff": _full,
    "w_norm": _full,
}
