"""Running upscaler networks: tiles, precision, memory."""

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
from imagefleet_worker.upscale.swin_fast import replace_blocks
from imagefleet_worker.upscale.tiles import Tiling, tiled_rows

logger = logging.getLogger(__name__)


class Upscaler:
    """A network that enlarges RGB pictures by an integer factor; not thread-safe."""

    def __init__(
        self,
        name: str,
        descriptor: ImageModelDescriptor[nn.Module],
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        """Take ownership of `descriptor`: its model is cast to `dtype` in place, on its device.

        Args:
            name: of the file.
            descriptor: of the network.
            dtype: to run it in.
            compiled: compile a SwinIR's blocks at their first run; no effect on other networks.
        """
        self.name = name
        self.scale = descriptor.scale
        if isinstance(descriptor.model, SwinIR):
            replace_blocks(descriptor.model, compiled)
        self._descriptor = descriptor
        self._dtype = dtype
        self._finite_check = _FiniteCheck()
        self._bytes_per_pixel: float | None = None
        descriptor.eval().to(dtype)
        descriptor.model.register_forward_hook(self._finite_check)
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
        """Enlarge a picture, tile by tile; see `tiled_rows` for the effect of tiling.

        When memory runs out, the batch of tiles, then the tiles are halved and the picture is
        restarted. `on_tile` may raise to cancel the job; the upscaler is then as before.

        Args:
            image: `(1, 3, H, W)` float in [0, 1], any device; not modified.
            tile_size: largest side of a tile, input pixels, a multiple of 8; None: 1040. At most
                272 on a CPU, and what free memory allows on a GPU.
            tile_overlap: minimum overlap of neighbours, input pixels; see `largest_tiling`.
            on_tile: called with (tiles done, total) after every call of the network.

        Returns:
            RGB, H * scale by W * scale. Besides it, a row of tiles in float32 is in memory.

        Raises:
            CorruptFile: the output has NaN or infinity even in float32.
            OutOfMemory: even the smallest tile does not fit.
        """
        tiling: Tiling | None = self._initial_tiling(tile_size, tile_overlap)
        while tiling:
            try:
                return self._upscale_with(image, tiling, on_tile)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
                logger.warning(
                    "upscaler %s: out of memory with %s",
                    self.name,
                    tiling,
                    extra={"action": "upscale_smaller", "upscaler": self.name},
                )
            tiling = memory.smaller_tiling(tiling)
            memory.release_cached_memory(self._descriptor.device)
        raise OutOfMemory(f"upscaler {self.name}: no memory for even the least tiles")

    def rows(
        self, image: Tensor, tiling: Tiling, on_tile: Callable[[int, int], None]
    ) -> Iterator[Tensor]:
        """The enlarged picture from top to bottom, float32: see `tiled_rows`."""
        image = image.to(self._descriptor.device, torch.float32)
        return tiled_rows(image, self.scale, tiling, self._run, on_tile)

    def _upscale_with(
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

    def _initial_tiling(self, tile_size: int | None, tile_overlap: int) -> Tiling:
        device = self._descriptor.device
        if device.type != "cuda":
            # Batches are no faster on a CPU: see tests/benchmarks/bench_upscale.py.
            tiling = memory.largest_tiling(memory.CPU_TILE_PX**2, tile_size, tile_overlap)
            return replace(tiling, batch=1)
        if self._bytes_per_pixel is None:
            self._bytes_per_pixel = memory.measure_bytes_per_pixel(self._run, device)
        pixels = memory.USABLE_SHARE * CudaMemory(device).free_bytes() / self._bytes_per_pixel
        return memory.largest_tiling(pixels, tile_size, tile_overlap)

    def _run(self, tile: Tensor) -> Tensor:
        enlarged = self._descriptor(tile.to(self._descriptor.device, self._dtype))
        if self._finite_check.last_output_finite:
            return enlarged
        if self._dtype != torch.float32:
            logger.warning(
                "upscaler %s exceeded the range of %s; running the tile again in float32",
                self.name,
                self._dtype,
                extra={"action": "upscale_again", "upscaler": self.name},
            )
            enlarged = self._run_in_float32(tile)
        if not self._finite_check.last_output_finite:
            raise CorruptFile(f"upscaler {self.name}: its output is not finite in float32")
        return enlarged

    def _run_in_float32(self, tile: Tensor) -> Tensor:
        """Upcast the weights for one call; casting back restores their values exactly."""
        model = self._descriptor.model
        try:
            model.float()
            return self._descriptor(tile.to(self._descriptor.device, torch.float32))
        finally:
            model.to(self._dtype)


class _FiniteCheck:
    """A forward hook that records whether the network's last output was finite.

    It runs before spandrel's descriptor clamps the output to [0, 1], which hides infinities.
    """

    last_output_finite = True

    def __call__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        picture = output if isinstance(output, Tensor) else output[0]
        self.last_output_finite = bool(torch.isfinite(picture).all())
