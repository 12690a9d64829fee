"""Upscaler networks of any architecture that spandrel knows."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from spandrel import ImageModelDescriptor
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

from imagefleet_shared.errors import CorruptFile, OutOfMemory

from ..images import from_unit_range
from . import memory
from .architectures import UnknownArchitecture, build
from .tiles import Tiling, tiled_rows
from .weights import first_sentence, read_weights
from .windows import speed_up

logger = logging.getLogger(__name__)


class Upscaler:
    """One network that enlarges RGB pictures by a whole factor. Belongs to one thread."""

    def __init__(
        self, name: str, descriptor: ImageModelDescriptor[nn.Module], dtype: torch.dtype
    ) -> None:
        """Take over `descriptor`: its model is cast to `dtype` in place and stays on its device."""
        self.name = name
        self.scale = descriptor.scale
        if isinstance(descriptor.model, SwinIR):
            speed_up(descriptor.model)
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
            tile_size: longest side of a tile, input pixels, a multiple of 8; None: 272 on a CPU, on
                a GPU as large as its free memory allows, up to 1040.
            tile_overlap: least number of input pixels that neighbours share.
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
        pixels = memory.SHARE * memory.free_bytes(device) / self._bytes_per_pixel
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
        model = self._descriptor.model.float()
        try:
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


def load_upscaler(path: Path, device: torch.device, dtype: torch.dtype) -> Upscaler:
    """Load a weight file: safetensors or PyTorch's own, told by its first bytes.

    Networks of scale 1 (denoisers, JPEG repair) are upscalers too, as in A1111; face networks not.

    Args:
        dtype: the precision wanted. On a CPU float16 becomes float32; elsewhere it falls back to
            bfloat16, and that to float32, where spandrel says that the architecture does not bear
            it.

    Raises:
        FileUnavailable: the file cannot be opened.
        CorruptFile: it is damaged, asks for Python objects, or is no network from RGB to RGB.
    """
    started = time.monotonic()
    weights = read_weights(path)
    try:
        descriptor = build(weights)
    except UnknownArchitecture as error:
        raise CorruptFile(f"upscaler {path.name}: {error}") from error
    except Exception as error:  # spandrel guesses sizes from shapes: a bad file fails in any way
        raise CorruptFile(f"upscaler {path.name}: {first_sentence(error)}") from error
    found = f"upscaler {path.name}: holds {descriptor.architecture.name}"
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose == "FaceSR":
        raise CorruptFile(f"{found} for {descriptor.purpose}, which is no upscaler")
    channels = (descriptor.input_channels, descriptor.output_channels)
    if channels != (3, 3):
        raise CorruptFile(f"{found} from {channels[0]} to {channels[1]} channels, not RGB to RGB")
    descriptor.to(device)
    upscaler = Upscaler(path.stem, descriptor, _pick_dtype(descriptor, device, dtype))
    logger.info(
        "loaded upscaler %s in %.2f s",
        path.name,
        time.monotonic() - started,
        extra={"action": "load_upscaler", "upscaler": path.name, "bytes": upscaler.size_bytes},
    )
    return upscaler


def _pick_dtype(
    descriptor: ImageModelDescriptor[nn.Module], device: torch.device, wanted: torch.dtype
) -> torch.dtype:
    if wanted == torch.float32 or (device.type == "cpu" and wanted == torch.float16):
        return torch.float32
    if wanted == torch.float16 and descriptor.supports_half:
        return torch.float16
    return torch.bfloat16 if descriptor.supports_bfloat16 else torch.float32
