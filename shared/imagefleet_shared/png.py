"""A fast PNG encoder: one filter, and Intel's ISA-L deflate instead of zlib."""

import io
import zlib
from collections.abc import Iterable, Iterator
from struct import pack

from isal import isal_zlib
from PIL import Image, ImageChops
from PIL.PngImagePlugin import putchunk

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH = 8
_COLOUR_TYPES = {"RGB": 2, "RGBA": 6}
_UP = b"\x02"
# The working set stays in the CPU's cache, and other threads can run between bands.
_BAND_ROWS = 64
_LEVEL = 1


def encode_png(
    image: Image.Image, icc_profile: bytes | None, chunks: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """Encode an RGB or RGBA image, with extra chunks (type, content) before its pixels.

    Every row is filtered by Up, its difference to the row above (PNG specification, 9.2), and
    deflated by ISA-L. `tests/benchmarks/bench_png.py` compares it with zlib.
    """
    deflate = isal_zlib.compressobj(_LEVEL)
    pixels = [deflate.compress(band) for band in _filtered(image)]
    file = io.BytesIO()
    file.write(_SIGNATURE)
    colour_type = _COLOUR_TYPES[image.mode]
    header = pack(">IIBBBBB", image.width, image.height, _DEPTH, colour_type, 0, 0, 0)
    putchunk(file, b"IHDR", header)
    if icc_profile is not None:
        putchunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    for kind, content in chunks:
        putchunk(file, kind, content)
    putchunk(file, b"IDAT", *pixels, deflate.flush())
    putchunk(file, b"IEND")
    return file.getvalue()


def _filtered(image: Image.Image) -> Iterator[bytes]:
    """The image's rows in bands, each row preceded by its filter type."""
    width, height = image.size
    row_bytes = len(image.mode) * width
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        band = image.crop((0, top, width, bottom))
        # Pixels outside an image are cropped as zeros, which is the row above the first one.
        above = image.crop((0, top - 1, width, bottom - 1))
        differences = memoryview(ImageChops.subtract_modulo(band, above).tobytes())
        starts = range(0, len(differences), row_bytes)
        yield _UP + _UP.join([differences[start : start + row_bytes] for start in starts])
