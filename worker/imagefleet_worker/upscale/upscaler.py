"""Upscaler networks at work: tiles, precision, memory."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from PIL import Image
from spandrel import ImageModelDescriptor
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

from imagefleet_shared.errors import CorruptFile, OutOfMemory
from imagefleet_worker.device.memory import CudaMemory
from imagefleet_worker.imaging.convert import from_unit_range
from imagefleet_worker.upscale import memory
from imagefleet_worker.upscale.swin_fast import speed_up
from imagefleet_worker.upscale.tiles import Tiling, tiled_rows

logger = logging.getLogger(__name__)


class Upscaler:
    """One network that enlarges RGB pictures by a whole factor. Belongs to one thread."""

    def __init__(
        self,
        name: str,
        descriptor: ImageModelDescriptor[nn.Module],
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        """Take over `descriptor`: its model is cast to `dtype` in place and stays on its device.

        Args:
            name: of the file.
            descriptor: of the network.
            dtype: to run it in.
            compiled: a SwinIR's blocks are compiled when they first run; other networks never.
        """
        self.name = name
        self.scale = descriptor.scale
        if isinstance(descriptor.model, SwinIR):
            speed_up(descriptor.model, compiled)
        self._descriptor = descriptor
        self._dtype = dtype
        self._finite = _FiniteProbe()
        self._bytes_per_pixel: float | None = None
        descriptor.eval().to(dtype)
        descriptor.model.register_forward_hook(self._finite)
        tensors = [*descriptor.model.parameters(), *descriptor.model.buffers()]
        self.size_bytes = sum(tensor.nbytes for tensor in tensors)

    @torch.no_grad()
    def upscale(
        self,
        image: Tensor,
        *,
        tile_size: int | None,
        tile_overlap: int,
        on_tile: Callable[[int, int], None],
    ) -> Image.Image:
        """Enlarge a picture, tile by tile; what tiling changes: see `tiled_rows`.

        When memory ends, the batch of tiles, then the tiles are halved and the picture is begun
        anew. `on_tile` may raise, which is how a job is canceled: the upscaler is as before.

        Args:
            image: `(1, 3, H, W)` float in [0, 1], any device; only read.
            tile_size: largest side of a tile, input pixels, a multiple of 8; None: 1040. On a CPU
                never above 272, on a GPU never above what its free memory allows.
            tile_overlap: least number of input pixels that neighbours share; see `fitting`.
            on_tile: called with (tiles done, tiles in all) after every call of the network.

        Returns:
            RGB, H * scale by W * scale; beside it, memory holds a row of tiles in float32.

        Raises:
            CorruptFile: the network gives NaN or infinity in float32 too.
            OutOfMemory: the least tile is too much.
        """
        tiling: Tiling | None = self._first_tiling(tile_size, tile_overlap)
        while tiling:
            try:
                return self._assembled(image, tiling, on_tile)
            except RuntimeError as error:
                if not memory.ran_out(error):
                    raise
                logger.warning(
                    "upscaler %s: out of memory with %s",
                    self.name,
                    tiling,
                    extra={"action": "upscale_smaller", "upscaler": self.name},
                )
            tiling = memory.smaller(tiling)
            memory.release(self._descriptor.device)
        raise OutOfMemory(f"upscaler {self.name}: no memory for even the least tiles")

    def rows(
        self, image: Tensor, tiling: Tiling, on_tile: Callable[[int, int], None]
    ) -> Iterator[Tensor]:
        """The enlarged picture from top to bottom, float32: see `tiled_rows`."""
        image = image.to(self._descriptor.device, torch.float32)
        return tiled_rows(image, self.scale, tiling, self._run, on_tile)

    def _assembled(
        self, image: Tensor, tiling: Tiling, on_tile: Callable[[int, int], None]
    ) -> Image.Image:
        height, width = image.shape[2:]
        picture = Image.new("RGB", (width * self.scale, height * self.scale))
        top = 0
        for rows in self.rows(image, tiling, on_tile):
            [strip] = from_unit_range(rows)
            picture.paste(strip, (0, top))
            top += strip.height
        return picture

    def _first_tiling(self, tile_size: int | None, tile_overlap: int) -> Tiling:
        device = self._descriptor.device
        if device.type != "cuda":
            # Batches do not pay on a CPU: see tests/benchmarks/bench_upscale.py.
            tiling = memory.fitting(memory.CPU_TILE_PX**2, tile_size, tile_overlap)
            return replace(tiling, batch=1)
        if self._bytes_per_pixel is None:
            self._bytes_per_pixel = memory.bytes_per_pixel(self._run, device)
        pixels = memory.USABLE_SHARE * CudaMemory(device).free_bytes() / self._bytes_per_pixel
        return memory.fitting(pixels, tile_size, tile_overlap)

    def _run(self, tile: Tensor) -> Tensor:
        enlarged = self._descriptor(tile.to(self._descriptor.device, self._dtype))
        if self._finite.last:
            return enlarged
        if self._dtype != torch.float32:
            logger.warning(
                "upscaler %s left the range of %s; this tile again in float32",
                self.name,
                self._dtype,
                extra={"action": "upscale_again", "upscaler": self.name},
            )
            enlarged = self._run_in_float32(tile)
        if not self._finite.last:
            raise CorruptFile(f"upscaler {self.name}: its output is not finite in float32")
        return enlarged

    def _run_in_float32(self, tile: Tensor) -> Tensor:
        """Cast the weights up for one call; casting back restores their values exactly."""
        model = self._descriptor.model
        try:
            model.float()
            return self._descriptor(tile.to(self._descriptor.device, torch.float32))
        finally:
            model.to(self._dtype)


class _FiniteProbe:
    """A forward hook: was the network's last output finite?

    It has to look before spandrel's descriptor, which clamps to [0, 1] and so hides infinities.
    """

    last = True

    def __call__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        picture = output if isinstance(output, Tensor) else output[0]
        self.last = bool(torch.isfinite(picture).all())
