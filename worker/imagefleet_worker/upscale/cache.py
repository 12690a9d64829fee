"""Cache of upscalers on the device."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from imagefleet_shared.errors import FileUnavailable
from imagefleet_worker.upscale.load import load_upscaler
from imagefleet_worker.upscale.upscaler import Upscaler


class UpscalerCache:
    """An LRU cache of upscalers on the device, up to a number of bytes; not thread-safe."""

    def __init__(
        self,
        find_file: Callable[[str], Path],
        device: torch.device,
        dtype: torch.dtype,
        budget_bytes: int,
        compiled: bool = False,
    ) -> None:
        """Start empty.

        Args:
            store_lookup: from a name to its file; raises UnknownUpscaler.
            dtype: see `load_upscaler`.
            budget_bytes: of weights, on the device.
            compiled: see `Upscaler`.
        """
        self._find_file = find_file
        self._device = device
        self._dtype = dtype
        self._budget_bytes = budget_bytes
        self._compiled = compiled
        self._entries: OrderedDict[Path, tuple[tuple[int, int], Upscaler]] = OrderedDict()

    def get(self, name: str) -> Upscaler:
        """The upscaler of that name, loaded if not cached or if its file has changed (time, size).

        Others are evicted until all fit the budget; one that exceeds it alone stays until another
        is requested.

        Raises:
            FileUnavailable, CorruptFile: as `load_upscaler`; the cache is unchanged.
        """
        path = self._find_file(name)
        try:
            stat = path.stat()
        except OSError as error:
            raise FileUnavailable(f"upscaler {path.name}: {error.strerror}") from error
        stamp = (stat.st_mtime_ns, stat.st_size)
        entry = self._entries.get(path)
        if entry is None or entry[0] != stamp:
            entry = (stamp, load_upscaler(path, self._device, self._dtype, self._compiled))
            self._entries[path] = entry
        self._entries.move_to_end(path)
        while len(self._entries) > 1 and self.size_bytes > self._budget_bytes:
            self._entries.popitem(last=False)
        return entry[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of cached weights."""
        return sum(upscaler.size_bytes for _, upscaler in self._entries.values())
