"""The `parameters` text that a picture carries, in A1111's format: written and read.

Three parts, each on lines of its own: the prompt; `Negative prompt: …` where there is one; then
`Steps: …, Sampler: …` and so on. What changes the picture is in the text, in A1111's words where it
has any.
"""

from imagefleet_shared.infotext.read import InfotextFields, Parsed, parse, read
from imagefleet_shared.infotext.write import Models, generated, upscaled

__all__ = ["InfotextFields", "Models", "Parsed", "generated", "parse", "read", "upscaled"]
