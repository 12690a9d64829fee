"""An adapter as deltas of parameters: the interface between file formats and merging."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

# How many parameters a message lists.
_MAX_LISTED = 8

Component = Literal["unet", "text_encoder", "text_encoder_2"]


@dataclass(frozen=True, order=True)
class Target:
    """A parameter of a pipeline."""

    component: Component
    parameter: str
    """Its name in the component's `named_parameters()`: `mid_block.attentions.0.proj_in.weight`."""


class Delta(Protocol):
    """A change of one parameter at scale 1; the merged value is `original + scale * delta`."""

    size_bytes: int
    """Size of its tensors."""

    def of(self, original: Tensor) -> Tensor:
        """The tensor to add at scale 1.

        Args:
            original: the checkpoint's value of the parameter, float32, on any device; not modified.

        Returns:
            float32, of the parameter's shape, on its device; owned by the caller.
        """
        ...


@dataclass(frozen=True)
class Adapter:
    """The deltas of one file, for one family of checkpoints."""

    sha256: str
    """Of the file; identifies the adapter whatever its name."""
    deltas: Mapping[Target, Delta]
    size_bytes: int
    """Size of the deltas."""


def target_names(targets: Sequence[Target]) -> str:
    """Names of the first few targets, for a message."""
    names = [f"{target.component}.{target.parameter}" for target in sorted(targets)]
    more = [f"{len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    return ", ".join([*names[:_MAX_LISTED], *more])
