"""Infotext, the `parameters` text of an image in A1111's format: writing and reading.

It has three parts, each on its own lines: the prompt; `Negative prompt: …` if there is one; then
`Steps: …, Sampler: …` and so on. Everything that changes the image is in the text, under A1111's
labels if it has any.
"""

from imagefleet_shared.infotext.read import InfotextFields, Parsed, parse, read
from imagefleet_shared.infotext.write import Models, generated, upscaled

__all__ = ["InfotextFields", "Models", "Parsed", "generated", "parse", "read", "upscaled"]
