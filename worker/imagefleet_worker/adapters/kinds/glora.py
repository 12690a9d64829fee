"""GLoRA: a low-rank delta that depends on the weight."""

from dataclasses import dataclass

from torch import Tensor

from imagefleet_worker.adapters.kinds.factors import Factors, ShapeMismatch, TensorShape, float32
from imagefleet_worker.adapters.kinds.product import Product


@dataclass(frozen=True, eq=False)
class GLoRA(Factors):
    """``scale * (W A + B)`` with low-rank A and B (arXiv:2306.07967, without its vectors).

    A acts on the inputs, the same at every position of a convolution's kernel.
    """

    on_weight: Product
    """``(in, in)``."""
    added: Product
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs = self.added.shape[1]
        if self.on_weight.shape[:2] != (inputs, inputs):
            raise ShapeMismatch(f"halves of shapes {self.on_weight.shape} and {self.added.shape}")

    @property
    def shape(self) -> TensorShape:
        return self.added.shape

    def of(self, original: Tensor) -> Tensor:
        device = original.device
        inputs = self.added.shape[1]
        # Kernel positions become rows, so that the inputs are last.
        rows = original.flatten(1).unflatten(1, (inputs, -1)).transpose(1, 2)
        left = float32(self.on_weight.left, device).flatten(1)
        right = float32(self.on_weight.right, device).flatten(1)
        changed = (rows @ left @ right).transpose(1, 2).reshape(original.shape)
        added = self.added.value(device, self.scale).reshape(original.shape)
        return added.add_(changed, alpha=self.scale)
