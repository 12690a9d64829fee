"""A checkpoint that is ready to run."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.checkpoints.empty_pipeline import Pipeline
from imagefleet_worker.weights.families import Family


@dataclass(frozen=True)
class WarmPipeline:
    """A checkpoint that is ready to run.

    Attributes:
        file: the checkpoint, in the version that was loaded.
        family: its architecture.
        pipeline: components in eval mode, with no gradients; those of another family are None or
            absent. ``unet`` and text encoders have ``dtype``. ``vae`` starts in it too and changes
            to float32 for good when it overflows, so encode and decode by ``vae.py`` alone.
            ``scheduler.config`` says what the UNet predicts (``prediction_type``,
            ``rescale_betas_zero_snr``).
        native_size_px: the picture side that the model was trained at.
        device: where passes run; with ``offload`` the weights rest on the CPU.
        dtype: of UNet and text encoders.
        naming: its layers by the names that adapter files give them.
        merged: its weights with adapters on; what is on stays until another set is wanted.
    """

    file: ModelFile
    family: Family
    pipeline: Pipeline
    native_size_px: int
    device: torch.device
    dtype: torch.dtype
    naming: Naming
    merged: MergedState

    @property
    def size_bytes(self) -> int:
        """Of all weights and buffers as they are now: a VAE that overflowed has grown."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All weights and buffers, each once."""
        for part in self.pipeline.components.values():
            if isinstance(part, Module):
                yield from part.parameters()
                yield from part.buffers()
