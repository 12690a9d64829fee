"""The delta of one parameter from what a file gives for it."""

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor

from imagefleet_worker.adapters.kinds.dora import DoRA
from imagefleet_worker.adapters.kinds.elementwise import IA3, Full, SparseRest
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
from imagefleet_worker.adapters.kinds.product import Product, Whole
from imagefleet_worker.adapters.kinds.tensors import Incomplete, StatedAlpha, TensorGroup
from imagefleet_worker.adapters.tensor_roles import TensorRole

AnyDelta = LowRank | DoRA | SparseRest | GLoRA | Full | IA3 | OFT | BOFT


def weight_delta(
    parts: Mapping[TensorRole, Tensor], parameter: TensorShape, stated: StatedAlpha | None
) -> AnyDelta:
    """The delta that the parts make, for a weight of that shape.

    Raises:
        Incomplete: a part is missing, or there is one that belongs to none.
        Misfit: shapes do not go together, or not with the weight's.
    """
    marker = next((part for part in _BUILDERS if part in parts), None)
    if marker is None:
        raise Incomplete(f"nothing but {', '.join(sorted(parts))}")
    given = TensorGroup(parts, stated)
    delta = _BUILDERS[marker](given, parameter)
    if given.unused:
        raise Incomplete(f"{', '.join(given.unused)} beside {marker}")
    return delta


def whole_delta(tensor: Tensor, parameter: TensorShape) -> Full:
    """The delta that the tensor is already; raises `Misfit` where its shape is another."""
    delta = Full(tensor)
    _require_fit(delta.shape, parameter)
    return delta


def _low_rank(given: TensorGroup, parameter: TensorShape) -> LowRank | DoRA | SparseRest:
    if given.has("lora_up") or given.has("lora_down"):
        delta = _lora(given)
    elif given.has("hada_w1_a"):
        delta = _loha(given)
    else:
        delta = _lokr(given)
    _require_fit(delta.shape, parameter)
    if given.has("bias_values"):
        return _sparse_rest(given, delta, parameter)
    magnitude = _magnitude(given, parameter)
    return delta if magnitude is None else DoRA(delta, magnitude)


def _lora(given: TensorGroup) -> LoRADelta:
    product = Product(given.take("lora_up"), given.take("lora_down"), given.maybe("lora_mid"))
    kind = RowwiseLoRADelta if product.core is None else LoRADelta
    return kind(product, given.scale(product.rank))


def _loha(given: TensorGroup) -> LoHa:
    first, second = (
        _product(given.take(f"hada_w{n}_a"), given.take(f"hada_w{n}_b"), given.maybe(f"hada_t{n}"))
        for n in (1, 2)
    )
    return LoHa(first, second, given.scale(first.rank))


def _lokr(given: TensorGroup) -> LoKr:
    first, second = _kron_half(given, 1), _kron_half(given, 2)
    # Where neither half is a product LyCORIS has no alpha, yet writes one into the file.
    rank = next((half.rank for half in (second, first) if isinstance(half, Product)), None)
    scale = given.scale(rank or 1)
    return LoKr(first, second, 1.0 if rank is None else scale)


def _kron_half(given: TensorGroup, n: int) -> Product | Whole:
    if given.has(f"lokr_w{n}"):
        return Whole(given.take(f"lokr_w{n}"))
    return _product(
        given.take(f"lokr_w{n}_a"), given.take(f"lokr_w{n}_b"), given.maybe(f"lokr_t{n}")
    )


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Product:
    # With a core LyCORIS has the left factor the other way round, in LoHa and LoKr.
    return Product(a if core is None else a.transpose(0, 1), b, core)


def _magnitude(given: TensorGroup, parameter: TensorShape) -> Tensor | None:
    """DoRA's, with its axis where the weight has it."""
    by_output, either = given.maybe("magnitude"), given.maybe("dora_scale")
    if by_output is None and either is not None and either.ndim > 1:
        return _by_output_or_input(either, parameter)
    magnitude = either if by_output is None else by_output
    if magnitude is None:
        return None
    if magnitude.numel() != parameter[0]:
        raise ShapeMismatch(f"a magnitude for each output, for a weight of {list(parameter)}")
    return magnitude.reshape(-1, *[1] * (len(parameter) - 1))


def _by_output_or_input(magnitude: Tensor, parameter: TensorShape) -> Tensor:
    shape = tuple(magnitude.shape)
    # The weight's sizes, not the factors': LyCORIS' LoHa and LoKr flatten a kernel into the inputs.
    sides = ((parameter[0], 1), (1, parameter[1])) if len(parameter) > 1 else ()
    if not any(fits(shape, side) for side in sides):
        raise ShapeMismatch(f"magnitude of shape {shape} for a weight of {list(parameter)}")
    return magnitude


def _sparse_rest(given: TensorGroup, delta: LowRank, parameter: TensorShape) -> SparseRest:
    places = given.take("bias_indices").long()
    size = given.take("bias_size").tolist()
    if places.ndim != 2 or len(places) != 2 or size != [parameter[0], prod(parameter[1:])]:
        raise ShapeMismatch(f"sparse values of {size} for a weight of {list(parameter)}")
    return SparseRest(delta, places[0], places[1], given.take("bias_values"))


def _glora(given: TensorGroup, parameter: TensorShape) -> GLoRA:
    a1, a2, b1, b2 = (given.take(part) for part in ("a1", "a2", "b1", "b2"))
    # LyCORIS once had the factors the other way round (and A1111 still has): the weight's own
    # sizes tell, but for square factors, which are the newer.
    newer = (a1.shape[0], b1.shape[0]) == (parameter[1], parameter[0])
    on_weight, added = (
        (Product(a1, a2), Product(b1, b2)) if newer else (Product(a2, a1), Product(b2, b1))
    )
    delta = GLoRA(on_weight, added, given.scale(on_weight.rank))
    _require_fit(delta.shape, parameter)
    return delta


def _ia3(given: TensorGroup, parameter: TensorShape) -> IA3:
    factor, on_input = given.take("ia3"), bool(given.number("on_input"))
    if factor.numel() != parameter[1 if on_input else 0]:
        side = "inputs" if on_input else "outputs"
        raise ShapeMismatch(f"{list(factor.shape)} for the {side} of a weight of {list(parameter)}")
    return IA3(factor, on_input)


def _oft(given: TensorGroup, parameter: TensorShape) -> OFT | BOFT:
    is_rotation = given.has("oft_diag")
    blocks = given.take("oft_diag" if is_rotation else "oft_blocks")
    rescale = given.maybe("rescale")
    constraint = (given.number("alpha") or 0.0) * parameter[0]
    if blocks.ndim == 4:
        delta = BOFT(blocks, constraint, rescale)
    else:
        delta = OFT(blocks, is_rotation, 0.0 if is_rotation else constraint, rescale)
    if delta.outputs != parameter[0]:
        raise ShapeMismatch(f"blocks of {list(blocks.shape)} for a weight of {list(parameter)}")
    return delta


def _full(given: TensorGroup, parameter: TensorShape) -> Full:
    return whole_delta(given.take("diff" if given.has("diff") else "w_norm"), parameter)


def _require_fit(delta: TensorShape, parameter: TensorShape) -> None:
    if not fits(delta, parameter):
        raise ShapeMismatch(f"{list(delta)} for a weight of {list(parameter)}")


# By a part that each kind has; any one of a low-rank kind's, so that what is missing can be named.
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
