"""Loading of upscaler files onto the device."""

import logging
import time
from pathlib import Path

import torch
from spandrel import ImageModelDescriptor
from torch import nn

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.upscale.architectures import UnknownArchitecture, build_descriptor
from imagefleet_worker.upscale.upscaler import Upscaler
from imagefleet_worker.weights.upscaler_tensors import first_sentence, read_weights

logger = logging.getLogger(__name__)


def load_upscaler(
    path: Path, device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> Upscaler:
    """Load a weight file: safetensors or PyTorch's own format, detected by its first bytes.

    As in A1111, networks of scale 1 (denoisers, JPEG repair) are upscalers; face networks are not.

    Args:
        dtype: the preferred precision; see `pick_dtype`.
        compiled: see `Upscaler`.

    Raises:
        FileUnavailable: the file cannot be opened.
        CorruptFile: it is damaged, contains Python objects, or is not an RGB to RGB network.
    """
    started = time.monotonic()
    weights = read_weights(path)
    try:
        descriptor = build_descriptor(weights)
    except UnknownArchitecture as error:
        raise CorruptFile(f"upscaler {path.name}: {error}") from error
    except Exception as error:  # spandrel infers sizes from shapes: a bad file may raise anything
        raise CorruptFile(f"upscaler {path.name}: {first_sentence(error)}") from error
    description = f"upscaler {path.name}: holds {descriptor.architecture.name}"
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose == "FaceSR":
        raise CorruptFile(f"{description} for {descriptor.purpose}, which is no upscaler")
    channels = (descriptor.input_channels, descriptor.output_channels)
    if channels != (3, 3):
        raise CorruptFile(
            f"{description} from {channels[0]} to {channels[1]} channels, not RGB to RGB"
        )
    descriptor.to(device)
    upscaler = Upscaler(path.stem, descriptor, pick_dtype(descriptor, device, dtype), compiled)
    logger.info(
        "loaded upscaler %s in %.2f s",
        path.name,
        time.monotonic() - started,
        extra={"action": "load_upscaler", "upscaler": path.name, "bytes": upscaler.size_bytes},
    )
    return upscaler


def pick_dtype(
    descriptor: ImageModelDescriptor[nn.Module], device: torch.device, preferred: torch.dtype
) -> torch.dtype:
    """The supported precision that comes closest to the preferred one.

    On a CPU, float16 becomes float32. On a GPU, float16 falls back to bfloat16 and that to float32
    if spandrel lists the architecture as not supporting it, or if the GPU lacks native bfloat16:
    those before Ampere only emulate it.
    """
    if preferred == torch.float32 or (device.type == "cpu" and preferred == torch.float16):
        return torch.float32
    if preferred == torch.float16 and descriptor.supports_half:
        return torch.float16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16 if descriptor.supports_bfloat16 else torch.float32
