"""Upscalers kept warm on the device."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from imagefleet_shared.errors import FileUnavailable
from imagefleet_worker.upscale.load import load_upscaler
from imagefleet_worker.upscale.upscaler import Upscaler


class UpscalerCache:
    """Keeps upscalers warm on the device, least recently used out first. Belongs to one thread."""

    def __init__(
        self,
        store_lookup: Callable[[str], Path],
        device: torch.device,
        dtype: torch.dtype,
        budget_bytes: int,
        compiled: bool = False,
    ) -> None:
        """Start with none.

        Args:
            store_lookup: from a name to its file; raises UnknownUpscaler.
            dtype: see `load_upscaler`.
            budget_bytes: of weights, on the device.
            compiled: see `Upscaler`.
        """
        self._store_lookup = store_lookup
        self._device = device
        self._dtype = dtype
        self._budget_bytes = budget_bytes
        self._compiled = compiled
        self._warm: OrderedDict[Path, tuple[tuple[int, int], Upscaler]] = OrderedDict()

    def get(self, name: str) -> Upscaler:
        """The upscaler of that name, loaded if it is not warm or its file has changed (time, size).

        Others are dropped until all fit the budget; one that alone exceeds it is kept until another
        is wanted.

        Raises:
            FileUnavailable, CorruptFile: as `load_upscaler`; what is warm stays so.
        """
        path = self._store_lookup(name)
        try:
            stat = path.stat()
        except OSError as error:
            raise FileUnavailable(f"upscaler {path.name}: {error.strerror}") from error
        stamp = (stat.st_mtime_ns, stat.st_size)
        warm = self._warm.get(path)
        if warm is None or warm[0] != stamp:
            warm = (stamp, load_upscaler(path, self._device, self._dtype, self._compiled))
            self._warm[path] = warm
        self._warm.move_to_end(path)
        while len(self._warm) > 1 and self.size_bytes > self._budget_bytes:
            self._warm.popitem(last=False)
        return warm[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of weights that are warm."""
        return sum(upscaler.size_bytes for _, upscaler in self._warm.values())
