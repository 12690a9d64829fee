"""Compiles blocks of UNet and VAE with Inductor, once for all image and batch sizes and prompts.

Regional compilation: a block's code is reused by every block of its shape, in every checkpoint of
an architecture, and a few dozen small graphs compile in a fraction of the time of one large graph.
Weights are inputs of the compiled code (Inductor's freezing is off), so in-place merges take effect
without recompilation.
"""

# These torch settings are not public.
# pyright: reportPrivateUsage=false

import os
from pathlib import Path

import torch
import torch._dynamo.config
import torch.fx.experimental._config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import Module

from imagefleet_shared.errors import WorkerFailure

# Recompilation limit of a block's code: an architecture has up to two dozen shapes of residual
# blocks in its UNet and VAE, and a worker may load three architectures in two dtypes. Above the
# limit (torch's default is 8) further shapes would silently run uncompiled.
_RECOMPILE_LIMIT = 256


def why_no_compiler() -> str | None:
    """Why Inductor cannot compile on this machine; None if it can."""
    # Imported on use: it takes seconds, and most CPU workers never compile.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler: CXX names none that runs, nor is g++ on the PATH"
    return None


def set_up_compiler(cache_dir: Path) -> None:
    """Configure this process to compile for dynamic sizes and to cache compiled code on disk.

    Args:
        cache_dir: of Inductor and Triton; with a filled cache, nothing is compiled again.

    Raises:
        WorkerFailure: the path has a space, which Inductor does not quote.
    """
    if " " in str(cache_dir.resolve()):
        raise WorkerFailure(f"IMAGEFLEET_COMPILE_CACHE_DIR {str(cache_dir)!r} must have no spaces")
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Torch reads the folder only from the environment.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir.resolve())
    os.environ["TRITON_CACHE_DIR"] = str(cache_dir.resolve() / "triton")
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = 4 * _RECOMPILE_LIMIT
    # Otherwise sizes that are equal once, as of a square image, would be assumed always equal.
    torch.fx.experimental._config.use_duck_shape = False


def compile_blocks(network: Module) -> None:
    """Compile a network's residual and transformer blocks lazily, on their first call.

    Parameters, and names and types of modules, are unchanged.
    """
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
            module.compile(dynamic=True)
