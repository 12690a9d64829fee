"""Base class of deltas that consist of tensors of a file."""

from collections.abc import Callable, Iterator
from dataclasses import Field, fields, replace
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

TensorShape = tuple[int, ...]


class ShapeMismatch(ValueError):
    """Tensors whose shapes do not match; the message has the shapes but not the layer's name."""


class Factors:
    """A value composed of tensors, in the file's dtype, and of other such values.

    Subclasses are frozen dataclasses that compare by identity.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    size_bytes: int
    """Size of its tensors."""

    def __post_init__(self) -> None:
        # Computed once, because caches read it often.
        object.__setattr__(self, "size_bytes", sum(tensor.nbytes for tensor in self.tensors()))

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, in the order of the fields."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Factors):
                yield from value.tensors()
            elif isinstance(value, Tensor):
                yield value

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `change` applied to each tensor, such as pinning; shapes must not change."""
        changed = {
            field.name: value.mapped(change) if isinstance(value, Factors) else change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Factors | Tensor)
        }
        return replace(self, **changed)


def float32(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device in float32; a copy only if needed.

    Moved before it is cast: in one call torch casts first, and twice the bytes are transferred.
    """
    return tensor.to(device, non_blocking=True).to(torch.float32)


def fits(delta: TensorShape, parameter: TensorShape) -> bool:
    """Whether a delta of this shape can be reshaped to the parameter's.

    Files may have a 1x1 convolution for a matrix or vice versa, or a convolution's kernel flattened
    into its inputs; other shapes are rejected even if the number of elements agrees.
    """
    flat = (parameter[0], prod(parameter[1:]))
    return _trimmed(delta) == _trimmed(parameter) or delta == flat


def _trimmed(shape: TensorShape) -> TensorShape:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
