"""Blocks of UNet and VAE compiled by Inductor, once for all sizes, batches and prompts.

Not the whole networks: a block's code serves every block of its shape, in every checkpoint of an
architecture, and a few dozen small graphs are compiled in a fraction of the time of one large one.
Weights are inputs of the compiled code (Inductor's freezing stays off), so merges in place take
effect and need no second compilation.
"""

# Torch has no public name for these settings.
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

# Of one block's code: an architecture has up to two dozen shapes of residual blocks in its UNet and
# VAE, and a worker may hold three architectures in two dtypes. Beyond the limit (torch's own is 8)
# further shapes would silently run uncompiled.
_SHAPES = 256


def why_no_compiler() -> str | None:
    """Why Inductor cannot compile on this machine; None when it can."""
    # Imported when asked for: it takes seconds, and most workers on a CPU never compile.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler: CXX names none that runs, nor is g++ on the PATH"
    return None


def set_up_compiler(cache_dir: Path) -> None:
    """Have everything that this process compiles serve all sizes, and keep it on disk.

    Args:
        cache_dir: of Inductor and Triton; a process that starts with it filled compiles nothing.

    Raises:
        WorkerFailure: its path has a space, which Inductor does not quote.
    """
    if " " in str(cache_dir.resolve()):
        raise WorkerFailure(f"IMAGEFLEET_COMPILE_CACHE_DIR {str(cache_dir)!r} must have no spaces")
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Torch takes the folder from nowhere else.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir.resolve())
    os.environ["TRITON_CACHE_DIR"] = str(cache_dir.resolve() / "triton")
    torch._dynamo.config.recompile_limit = _SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * _SHAPES
    # Else sizes that are equal once, as a square picture's, would be taken to be equal always.
    torch.fx.experimental._config.use_duck_shape = False


def compile_blocks(network: Module) -> None:
    """Have a network's residual and transformer blocks compiled when they first run.

    Parameters, names and types of its modules stay as they are.
    """
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
            module.compile(dynamic=True)
