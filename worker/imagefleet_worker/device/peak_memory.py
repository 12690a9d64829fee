"""The most memory that was in use on the GPU at once.

torch counts one peak, from its last reset on. Here a span can be measured within another one, as
an upscaler is tried while a batch runs.
"""

from collections.abc import Callable

import torch


class GpuPeak:
    """Of a worker's one device; belongs to the engine's thread."""

    def __init__(self) -> None:
        self._erased_bytes = 0

    def begin(self, device: torch.device) -> None:
        """Forget the peak so far."""
        self._erased_bytes = 0
        torch.cuda.reset_peak_memory_stats(device)

    def most_bytes(self, device: torch.device) -> int:
        """The peak since `begin`, whatever was measured in between."""
        return max(self._erased_bytes, torch.cuda.max_memory_allocated(device))

    def within(self, device: torch.device, run: Callable[[], object]) -> int:
        """The peak while `run` runs, in bytes."""
        self._erased_bytes = self.most_bytes(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)


GPU_PEAK = GpuPeak()
