"""Nested measurements of peak GPU memory.

torch counts one peak, since the last reset. Here a measurement can be nested in another, as when
an upscaler is probed while a batch runs.
"""

from collections.abc import Callable

import torch


class GpuPeak:
    """Peak memory of a worker's device; for the engine's thread."""

    def __init__(self) -> None:
        self._earlier_peak_bytes = 0

    def begin(self, device: torch.device) -> None:
        """Reset the peak."""
        self._earlier_peak_bytes = 0
        torch.cuda.reset_peak_memory_stats(device)

    def peak_bytes(self, device: torch.device) -> int:
        """The peak since `begin`, including nested measurements."""
        return max(self._earlier_peak_bytes, torch.cuda.max_memory_allocated(device))

    def measure(self, device: torch.device, run: Callable[[], object]) -> int:
        """The peak while `run` runs, in bytes."""
        self._earlier_peak_bytes = self.peak_bytes(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)


GPU_PEAK = GpuPeak()
