"""Peaks of memory measured within each other, by an allocator that counts as torch's does."""

import pytest
import torch

from imagefleet_worker.device.peak_memory import GpuPeak

DEVICE = torch.device("cuda")


class Allocator:
    """Stands for torch's on machines without a GPU; tests/gpu has the same with the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._taken = self._peak = 0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", self._most)

    def take(self, size: int) -> None:
        """And give it back."""
        self._peak = max(self._peak, self._taken + size)

    def keep(self, size: int) -> None:
        self.take(size)
        self._taken += size

    def _most(self, device: torch.device) -> int:
        return self._peak

    def _reset(self, device: torch.device) -> None:
        self._peak = self._taken


def test_a_measure_within_another_takes_nothing_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying an upscaler erased the peak of the diffusion before it, from which the sizes of
    batches are learnt."""
    allocator, peak = Allocator(monkeypatch), GpuPeak()
    peak.begin(DEVICE)
    allocator.keep(5)
    allocator.take(100)
    assert peak.within(DEVICE, lambda: allocator.take(20)) == 25
    assert peak.most_bytes(DEVICE) == 105
    assert peak.within(DEVICE, lambda: allocator.take(200)) == 205
    assert peak.within(DEVICE, lambda: allocator.take(1)) == 6
    assert peak.most_bytes(DEVICE) == 205
    peak.begin(DEVICE)
    assert peak.most_bytes(DEVICE) == 5
