"""Tensors of a file that together make a change of one parameter."""

from collections.abc import Callable, Iterator
from dataclasses import Field, fields, replace
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

TensorShape = tuple[int, ...]


class ShapeMismatch(ValueError):
    """Tensors whose shapes do not go together; the message has them, but not the layer's name."""


class Factors:
    """A value made of tensors, which keep the file's dtype, and of other such values.

    Its subclasses are frozen dataclasses. Two are equal only if they are the same object: comparing
    tensors is the caller's affair.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    size_bytes: int
    """Memory that its tensors take."""

    def __post_init__(self) -> None:
        # Summed once, not with every look: caches ask often.
        object.__setattr__(self, "size_bytes", sum(tensor.nbytes for tensor in self.tensors()))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor in it, in the order of the fields."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Factors):
                yield from value.tensors()
            elif isinstance(value, Tensor):
                yield value

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with each tensor changed: pinned, or moved to a device. Shapes must stay."""
        changed = {
            field.name: value.mapped(change) if isinstance(value, Factors) else change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Factors | Tensor)
        }
        return replace(self, **changed)


def float32(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; not a copy where nothing changes.

    Moved first and cast there: torch casts before it copies to a GPU, and half the bytes travel.
    """
    return tensor.to(device, non_blocking=True).to(torch.float32)


def fits(delta: TensorShape, parameter: TensorShape) -> bool:
    """Whether a delta of the natural shape of its factors can be that parameter's.

    Files have a 1x1 convolution for a matrix and the reverse, and flatten a convolution's kernel
    into its inputs; nothing else that has as many elements is let through.
    """
    flat = (parameter[0], prod(parameter[1:]))
    return _trimmed(delta) == _trimmed(parameter) or delta == flat


def _trimmed(shape: TensorShape) -> TensorShape:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
