"""What an adapter adds to one parameter: the seam between files and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

# Parameters that a message names.
_NAMED = 8

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
    """Memory that its tensors take."""

    def of(self, original: Tensor) -> Tensor:
        """The tensor to add at scale 1.

        Args:
            original: the parameter as the checkpoint has it, float32, on any device; only read.

        Returns:
            float32, of the parameter's shape, on its device; owned by the caller.
        """
        ...


@dataclass(frozen=True)
class Adapter:
    """One file's worth of deltas, for one family of checkpoints."""

    sha256: str
    """Of the file: the adapter's identity, whatever its name."""
    deltas: Mapping[Target, Delta]
    size_bytes: int
    """Memory that the deltas take."""


def target_names(targets: Sequence[Target]) -> str:
    """The first of them, for a message."""
    names = [f"{target.component}.{target.parameter}" for target in sorted(targets)]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])
