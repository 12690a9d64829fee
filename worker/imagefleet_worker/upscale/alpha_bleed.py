"""Colours for pixels that are wholly transparent."""

from PIL import Image


def spread_colours(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """A copy of an RGB picture whose wholly transparent pixels take the colours round them.

    Files hold anything under full transparency, black mostly. A network or a filter that enlarges
    the picture would mix that into the visible pixels beside it: a dark fringe. The others keep
    their colours, straight: multiplied by alpha, thin ones would lose their precision.

    Pull-push: halve the picture until every pixel has a colour (means weighed by alpha), then fill
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
