"""Render the demo's gallery through the queue into one contact sheet.

    python -m tools.demo_gallery out

Needs a running fleet with the trained demo models, as `make demo` starts it, configured by the
environment. All jobs are enqueued at once; the sheet is saved as `gallery.png` in the folder.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from PIL import Image, ImageDraw, ImageFont

from imagefleet_producer import (
    Client,
    GenerateRequest,
    HiresPass,
    ImageRef,
    Job,
    LoRA,
    UpscaleRequest,
)

_SETTINGS = {"checkpoint": "demo", "num_inference_steps": 20, "guidance_scale": 4.0}
_COLUMNS = 4
_CELL_PX = 256
_LABEL_PX = 52
_CHARACTERS_PER_LINE = 46
_GAP_PX = 10
_BACKGROUND = (255, 255, 255)
_TEXT_COLOUR = (40, 40, 48)
_TIMEOUT_S = 300


@dataclass(frozen=True)
class GalleryEntry:
    """A picture of the sheet, with its title and request."""

    title: str
    request: GenerateRequest


def _request(prompt: str, seed: int, **fields: object) -> GenerateRequest:
    values = {**_SETTINGS, **fields}
    return GenerateRequest.model_validate({"prompt": prompt, "seed": seed, **values})


_HIRES = HiresPass(scale=2, upscaler="demo-x2", strength=0.1, num_inference_steps=8)
_ENLARGED = _request("a rocket on a purple background", 3)

GALLERY = (
    GalleryEntry("plain", _request("a fox on a blue background", 1)),
    GalleryEntry("plain", _request("a slice of pizza on a green background", 2)),
    GalleryEntry("plain, tinted", _request("a red fox on a white background", 1)),
    GalleryEntry("plain, tinted", _request("a blue frog on a black background", 1)),
    GalleryEntry("demo-blueprint, LoRA", _request("a soccer ball <lora:demo-blueprint:1>", 5)),
    GalleryEntry(
        "demo-sticker, LoHa",
        _request("an umbrella on a blue background <lora:demo-sticker:1>", 6),
    ),
    GalleryEntry(
        "demo-snowman, LoRA",
        _request("a snowman on a blue background", 7, loras=[LoRA(name="demo-snowman")]),
    ),
    GalleryEntry("demo-owl, embedding", _request("a demo-owl on a pink background", 8)),
    GalleryEntry(
        "two adapters",
        _request("a snowman on a red background <lora:demo-snowman:1> <lora:demo-sticker:0.8>", 9),
    ),
    GalleryEntry("hires x2", _request("a house on a purple background", 1, hires=_HIRES)),
    GalleryEntry("the next at 128 x 128", _ENLARGED),
)
"""The last one is also upscaled."""


def contact_sheet(pictures: list[tuple[str, str, Image.Image]]) -> Image.Image:
    """Arrange pictures in rows with title and prompt; small ones are enlarged without smoothing."""
    rows = -(-len(pictures) // _COLUMNS)
    width = _COLUMNS * (_CELL_PX + _GAP_PX) + _GAP_PX
    height = rows * (_CELL_PX + _LABEL_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    for number, (title, prompt, picture) in enumerate(pictures):
        row, column = divmod(number, _COLUMNS)
        left = _GAP_PX + column * (_CELL_PX + _GAP_PX)
        top = _GAP_PX + row * (_CELL_PX + _LABEL_PX + _GAP_PX)
        cell = picture.convert("RGB").resize((_CELL_PX, _CELL_PX), Image.Resampling.NEAREST)
        sheet.paste(cell, (left, top))
        canvas.text((left, top + _CELL_PX + 4), title, _TEXT_COLOUR, ImageFont.load_default(15))
        label = fill(prompt, _CHARACTERS_PER_LINE)
        canvas.text((left, top + _CELL_PX + 23), label, _TEXT_COLOUR, ImageFont.load_default(11))
    return sheet


def render_gallery(client: Client) -> Image.Image:
    """Render all entries and the upscaled picture on the fleet."""
    jobs: list[tuple[GalleryEntry, Job]] = [
        (each, client.generate(each.request)) for each in GALLERY
    ]
    pictures = [
        (each.title, each.request.prompt, job.images(timeout=_TIMEOUT_S)[0]) for each, job in jobs
    ]
    small = jobs[-1][1].result().images[0].key
    upscale_job = client.upscale(
        UpscaleRequest(images=(ImageRef(key=small),), upscaler="demo-x2", scale=2)
    )
    enlarged = upscale_job.images(timeout=_TIMEOUT_S)[0]
    pictures.append(("x2 by demo-x2, a SwinIR", _ENLARGED.prompt, enlarged))
    return contact_sheet(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the demo's gallery through the queue.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with Client() as client:
        render_gallery(client).save(folder / "gallery.png", optimize=True)
    print(f"{folder / 'gallery.png'}: all pictures on one sheet")


if __name__ == "__main__":
    main()
