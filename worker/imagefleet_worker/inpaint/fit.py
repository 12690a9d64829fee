"""A1111's resize modes, which fit an initial image to the size of the job."""

from PIL import Image

from imagefleet_shared.field_types import ResizeMode
from imagefleet_worker.imaging.convert import resize

_MAX_FULL_PIXELS = 2**25
"""Limit for enlarging an image before cropping it: one of 8192 x 1 would take gigabytes."""


def fit(image: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """A copy of an image (RGB or L), fitted to exactly width x height pixels.

    "latent" stretches masks and overlays like "just_resize"; the image itself is then encoded by
    way of `crop_to_multiple_of_8`. Always resamples with Lanczos, the default of A1111's
    `upscaler_for_img2img`.
    """
    if mode == "crop_and_resize":
        return _cover_and_crop(image, width, height)
    if mode == "resize_and_fill":
        return _contain_and_extend(image, width, height)
    return resize(image, width, height)


def crop_to_multiple_of_8(image: Image.Image) -> Image.Image:
    """An image as it is encoded in the mode "latent", which resizes latents instead of pixels.

    The right and the bottom are cropped to a multiple of 8, as the VAE's strides would do; a side
    shorter than 8 pixels is stretched to 8.
    """
    width, height = max(8, image.width), max(8, image.height)
    return resize(image, width, height).crop((0, 0, width // 8 * 8, height // 8 * 8))


def _cover_and_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale the image to cover the target, keeping its aspect ratio, and crop its centre."""
    if image.width * height > image.height * width:
        full_width, full_height = image.width * height // image.height, height
    else:
        full_width, full_height = width, image.height * width // image.width
    left, top = full_width // 2 - width // 2, full_height // 2 - height // 2
    if full_width * full_height <= _MAX_FULL_PIXELS:
        full = resize(image, full_width, full_height)
        return full.crop((left, top, left + width, top + height))
    # The same to within a pixel, without computing what is cropped.
    x_scale, y_scale = image.width / full_width, image.height / full_height
    right, bottom = min(image.width, (left + width) * x_scale), (top + height) * y_scale
    box = (left * x_scale, top * y_scale, right, min(image.height, bottom))
    return image.resize((width, height), Image.Resampling.LANCZOS, box)


def _contain_and_extend(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale the image to fit into the target, and fill the bands beside it from its edges.

    Like A1111, resize a box of zero extent at the edge. Pillow's bicubic filter then sees the two
    outermost lines at distances 0.5 and 1.5, giving 9/8 of the outer minus 1/8 of the inner one.
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
