"""Applies the worker's options to a loaded pipeline."""

import torch
from torch.nn import Module

from imagefleet_worker.checkpoints.empty_pipeline import Pipeline
from imagefleet_worker.device.attention import set_attention
from imagefleet_worker.device.compile import compile_blocks
from imagefleet_worker.device.cuda_graphs import capture_graphs
from imagefleet_worker.device.layer_offload import offload_layers
from imagefleet_worker.device.presets import Options
from imagefleet_worker.device.transfer import move


def apply_options(pipeline: Pipeline, options: Options, device: torch.device) -> None:
    """Configure the pipeline to run on the device; call it before any adapter is merged.

    Args:
        pipeline: freshly loaded, onto the device or, with `offload`, into host memory.
        options: the worker's.
        device: where passes run.
    """
    pipeline.set_progress_bar_config(disable=True)
    unet, vae = pipeline.unet, pipeline.vae
    if options.channels_last:
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    set_attention(unet, vae, options.attention)
    if options.vae_tiling:
        vae.enable_tiling()
    if options.compile:
        compile_blocks(unet)
        compile_blocks(vae.decoder)
    if options.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    if options.offload == "sequential":
        for network in pipeline.components.values():
            if isinstance(network, Module):
                weights = [*network.parameters(), *network.buffers()]
                move(weights, torch.device("cpu"), pinned=device.type == "cuda")
                offload_layers(network, device)
    if options.cuda_graphs:
        capture_graphs(unet)
