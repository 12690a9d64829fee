"""Pictures brought to the size of the job, by A1111's resize modes."""

from PIL import Image

from imagefleet_shared.field_types import ResizeMode
from imagefleet_worker.imaging.convert import resize

_MAX_WHOLE_PIXELS = 2**25
"""Of a picture enlarged before its middle is cut out: a line of 8192 x 1 would take gigabytes."""


def fit(image: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """A copy of the picture (RGB or L) at exactly that size in pixels.

    "latent" stretches, as "just_resize": what A1111 stretches as latents instead of pixels is
    `own_size`. Lanczos throughout, which is A1111's `upscaler_for_img2img` at its default.
    """
    if mode == "crop_and_resize":
        return _middle(image, width, height)
    if mode == "resize_and_fill":
        return _drawn_out(image, width, height)
    return resize(image, width, height)


def own_size(image: Image.Image) -> Image.Image:
    """The picture as it is encoded where it is stretched as latents: at its own size.

    What exceeds a multiple of 8 at the right and the bottom is cut, as the VAE's strides would;
    a side of less than 8 pixels is stretched to 8.
    """
    width, height = max(8, image.width), max(8, image.height)
    return resize(image, width, height).crop((0, 0, width // 8 * 8, height // 8 * 8))


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of the picture at the smallest size of its proportions that covers the target."""
    if image.width * height > image.height * width:
        whole = image.width * height // image.height, height
    else:
        whole = width, image.height * width // image.width
    left, top = whole[0] // 2 - width // 2, whole[1] // 2 - height // 2
    if whole[0] * whole[1] <= _MAX_WHOLE_PIXELS:
        return resize(image, *whole).crop((left, top, left + width, top + height))
    # The same within a pixel, without the rest.
    across, down = image.width / whole[0], image.height / whole[1]
    right, bottom = min(image.width, (left + width) * across), (top + height) * down
    box = (left * across, top * down, right, min(image.height, bottom))
    return image.resize((width, height), Image.Resampling.LANCZOS, box)


def _drawn_out(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at the largest size that fits in, the bands beside it filled with its edges.

    A1111 lets the resampler read a box of no extent at the edge. Pillow's bicubic filter then sees
    the two outermost lines at distances 0.5 and 1.5: 9/8 of the outer less 1/8 of the inner.
    """
    if image.width * height > image.height * width:
        inner = resize(image, width, max(1, image.height * width // image.width))
    else:
        inner = resize(image, max(1, image.width * height // image.height), height)
    left, top = width // 2 - inner.width // 2, height // 2 - inner.height // 2
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(inner, (left, top))
    if left > 0:
        for x, edge in ((0, 0), (left + inner.width, inner.width)):
            canvas.paste(inner.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    if top > 0:
        for y, edge in ((0, 0), (top + inner.height, inner.height)):
            canvas.paste(inner.resize((width, top), box=(0, edge, width, edge)), (0, y))
    return canvas
