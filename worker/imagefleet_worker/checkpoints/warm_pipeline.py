"""A loaded checkpoint with everything the renderer needs of it."""

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
    """A loaded checkpoint that is ready to run.

    Attributes:
        file: the checkpoint, in the version that was loaded.
        family: its architecture.
        pipeline: components in eval mode, with no gradients; those that the family lacks are None
            or absent. ``unet`` and text encoders have ``dtype``. ``vae`` starts in it too but is
            upcast to float32 for good when it overflows, so use ``vae.py`` to encode and decode.
            ``scheduler.config`` has what the UNet predicts (``prediction_type``,
            ``rescale_betas_zero_snr``).
        native_size_px: the image side that the model was trained at.
        device: where passes run; with ``offload`` the weights are stored on the CPU.
        dtype: of the UNet and the text encoders.
        naming: resolves the layer names of adapter files.
        merged: the merged adapters; they stay merged until a job requests another set.
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
        """Current size of all weights and buffers: a VAE that overflowed has grown."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All weights and buffers, once each."""
        for component in self.pipeline.components.values():
            if isinstance(component, Module):
                yield from component.parameters()
                yield from component.buffers()
