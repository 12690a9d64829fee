"""Pictures brought to the size of the job, by A1111's resize modes."""

from PIL import Image

from imagefleet_shared.fields import ResizeMode

from ..images import resize


def fit(image: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """A copy of the picture (RGB or L) at exactly that size in pixels.

    "latent" stretches, as "just_resize": what A1111 stretches as latents instead of pixels is
    `own_size`. Lanczos throughout, which is A1111's `upscaler_for_img2img` at its default.
    """
    if mode == "crop_and_resize":
        return _centred(_keeping_proportions(image, width, height, covering=True), width, height)
    if mode == "resize_and_fill":
        inner = _keeping_proportions(image, width, height, covering=False)
        return _drawn_out(inner, width, height)
    return resize(image, width, height)


def own_size(image: Image.Image) -> Image.Image:
    """The picture as it is encoded where it is stretched as latents: at its own size.

    What exceeds a multiple of 8 at the right and the bottom is cut, as the VAE's strides would;
    a side of less than 8 pixels is stretched to 8.
    """
    width, height = max(8, image.width), max(8, image.height)
    return resize(image, width, height).crop((0, 0, width // 8 * 8, height // 8 * 8))


def _keeping_proportions(
    image: Image.Image, width: int, height: int, covering: bool
) -> Image.Image:
    """The picture at the smallest size that covers the target, or the largest that fits in it."""
    wider = image.width * height > image.height * width
    if wider == covering:
        width = max(1, image.width * height // image.height)
    else:
        height = max(1, image.height * width // image.width)
    return resize(image, width, height)


def _centred(image: Image.Image, width: int, height: int) -> Image.Image:
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(image, (width // 2 - image.width // 2, height // 2 - image.height // 2))
    return canvas


def _drawn_out(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in the middle, the bands beside it filled with its outermost pixels.

    A1111 lets the resampler read a box of no extent at the edge. Pillow's bicubic filter then sees
    the two outermost lines at distances 0.5 and 1.5: 9/8 of the outer less 1/8 of the inner.
    """
    canvas = _centred(image, width, height)
    left, top = width // 2 - image.width // 2, height // 2 - image.height // 2
    if left > 0:
        for x, edge in ((0, 0), (left + image.width, image.width)):
            canvas.paste(image.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    if top > 0:
        for y, edge in ((0, 0), (top + image.height, image.height)):
            canvas.paste(image.resize((width, top), box=(0, edge, width, edge)), (0, y))
    return canvas
