"""Where the GPU check measures, on which checkpoints and in which sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from imagefleet_worker.device.compile import why_no_compiler
from imagefleet_worker.device.memory import CPU_MEMORY, CpuMemory, CudaMemory
from imagefleet_worker.weights.families import NATIVE_SIZE_PX
from tests.benchmarks.options_trial import matmul_flops
from tests.full_size import write_full_size
from tools.make_demo_checkpoint import write_demo_checkpoint

GpuFamily = Literal["sd1", "sdxl"]
FAMILIES: tuple[GpuFamily, ...] = ("sd1", "sdxl")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is rendered of a family."""

    size_px: int
    batches: tuple[int, ...]
    """For the UNet alone, in pictures."""
    jobs: int
    """For the whole engine, at once."""


_SIZES: Mapping[GpuFamily, Sizes] = {
    "sd1": Sizes(size_px=NATIVE_SIZE_PX["sd1"], batches=(1, 16), jobs=32),
    "sdxl": Sizes(size_px=NATIVE_SIZE_PX["sdxl"], batches=(1, 4), jobs=8),
}
_QUICK_SIZES: Mapping[GpuFamily, Sizes] = {
    "sd1": Sizes(size_px=64, batches=(1, 2), jobs=4),
    "sdxl": Sizes(size_px=64, batches=(1,), jobs=2),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Device, checkpoints and sizes of a run."""

    folder: Path
    """For checkpoints and compiled code."""
    quick: bool
    """Small checkpoints, small pictures and few steps."""
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """As the worker chooses it for the device."""
        return torch.float16 if self.on_gpu else torch.float32

    @property
    def memory(self) -> CpuMemory | CudaMemory:
        """As the worker's engine measures it."""
        return CudaMemory(self.device) if self.on_gpu else CPU_MEMORY

    @property
    def steps(self) -> int:
        """Inference steps of a picture."""
        return 2 if self.quick else 25

    @property
    def compile_cache_dir(self) -> Path:
        return self.folder / "compiled"

    @cached_property
    def matmul_flops(self) -> float:
        """FLOP/s of a large matrix product, measured once."""
        return matmul_flops(self.device, self.dtype)

    @cached_property
    def why_not_compiled(self) -> str | None:
        """Why the fast preset is measured without compilation; None: it is compiled."""
        # Compiling on a CPU takes minutes, and bench_options --quick covers it.
        return "--quick" if self.quick else why_no_compiler()

    def sizes(self, family: GpuFamily) -> Sizes:
        return (_QUICK_SIZES if self.quick else _SIZES)[family]

    def checkpoint(self, family: GpuFamily) -> Path:
        """Where the family's checkpoint is, named as the family in a worker's model folder."""
        return self.folder / f"checkpoints/{family}.safetensors"

    def write_checkpoints(self) -> None:
        """Write the families' checkpoints, with random weights, unless they are there already."""
        write = write_demo_checkpoint if self.quick else write_full_size
        for family in FAMILIES:
            path = self.checkpoint(family)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Renamed at the end: an interrupted file is never taken for a checkpoint.
                partial = path.with_suffix(".partial")
                write(partial, family, 0)
                partial.rename(path)
