"""Colours for fully transparent pixels."""

from PIL import Image


def spread_colours(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Copy an RGB picture, giving fully transparent pixels the colours that surround them.

    Files store arbitrary colours under full transparency, mostly black. Enlarging the picture would
    mix them into the visible pixels nearby: a dark fringe. Visible pixels keep their straight
    colours: premultiplied by a small alpha, they would lose precision.

    Pull-push: halve the picture until every pixel has a colour (means weighted by alpha), then fill
    each size from the next smaller one.
    """
    layers = [_opaque_where_visible(_with_alpha(colours, alpha))]
    while layers[-1].getchannel("A").getextrema()[0] == 0 and max(layers[-1].size) > 1:
        layers.append(_opaque_where_visible(layers[-1].convert("RGBa").reduce(2).convert("RGBA")))
    filled = layers.pop().convert("RGB")
    while layers:
        layer = layers.pop()
        filled = filled.resize(layer.size, Image.Resampling.BILINEAR)
        filled.paste(layer, mask=layer)
    return filled


def _with_alpha(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    return Image.merge("RGBA", [*colours.split(), alpha])


def _opaque_where_visible(layer: Image.Image) -> Image.Image:
    visible = layer.getchannel("A").point(_OPAQUE)
    layer.putalpha(visible)
    return layer


_OPAQUE = [0, *[255] * 255]
