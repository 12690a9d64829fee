"""Nested measurements of peak memory, with a fake allocator that counts like torch's."""

import pytest
import torch

from imagefleet_worker.device.peak_memory import GpuPeak

DEVICE = torch.device("cuda")


class FakeAllocator:
    """Fakes torch's allocator on machines without a GPU; tests/gpu tests the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allocated = self._peak = 0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", self._max_allocated)

    def allocate_temporarily(self, size: int) -> None:
        """Allocate temporarily."""
        self._peak = max(self._peak, self._allocated + size)

    def allocate(self, size: int) -> None:
        self.allocate_temporarily(size)
        self._allocated += size

    def _max_allocated(self, device: torch.device) -> int:
        return self._peak

    def _reset(self, device: torch.device) -> None:
        self._peak = self._allocated


def test_a_nested_measurement_does_not_reset_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probing an upscaler used to reset the peak of the diffusion before it, from which batch size
    limits are learned."""
    allocator, peak = FakeAllocator(monkeypatch), GpuPeak()
    peak.begin(DEVICE)
    allocator.allocate(5)
    allocator.allocate_temporarily(100)
    assert peak.measure(DEVICE, lambda: allocator.allocate_temporarily(20)) == 25
    assert peak.peak_bytes(DEVICE) == 105
    assert peak.measure(DEVICE, lambda: allocator.allocate_temporarily(200)) == 205
    assert peak.measure(DEVICE, lambda: allocator.allocate_temporarily(1)) == 6
    assert peak.peak_bytes(DEVICE) == 205
    peak.begin(DEVICE)
    assert peak.peak_bytes(DEVICE) == 5
