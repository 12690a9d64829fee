"""Chooses the engine's options for this machine: from settings, else by device."""

import logging
from dataclasses import asdict

import torch

from imagefleet_shared.errors import WorkerFailure
from imagefleet_worker.device.attention import choose_attention
from imagefleet_worker.device.compile import set_up_compiler, why_no_compiler
from imagefleet_worker.device.presets import (
    Machine,
    Options,
    choose_options,
    choose_preset,
    requested_attention,
)
from imagefleet_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


def total_device_bytes(device: torch.device) -> int | None:
    """Total memory of the GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def options_for(device: torch.device, dtype: torch.dtype, settings: WorkerSettings) -> Options:
    """Choose and log the options, and set up the compiler if they need it.

    Raises:
        WorkerFailure: an option that is set is not possible here, or no attention backend works.
    """
    machine = Machine(accelerator_bytes=total_device_bytes(device), why_no_compiler=why_no_compiler)
    choice = choose_preset(settings.preset, machine)
    requested = requested_attention(settings, choice.preset, machine)
    attention = choose_attention(requested, device, dtype)
    options = choose_options(settings, choice.preset, machine, attention)
    summary = ", ".join(f"{name} {value}" for name, value in asdict(options).items())
    logger.info(
        "device %s, %s, preset %s (%s): %s", device, dtype, choice.preset, choice.reason, summary
    )
    if settings.upscaler_compile and (reason := why_no_compiler()):
        raise WorkerFailure(
            f"IMAGEFLEET_UPSCALER_COMPILE=true, but {reason}; unset it or install g++"
        )
    if options.compile or settings.upscaler_compile:
        set_up_compiler(settings.compile_cache_dir)
    return options
