"""Render the demo's pictograms into one atlas, `sprites.png`.

    python -m tools.training.make_sprites /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

Only this script needs the font: Noto Color Emoji, SIL OFL 1.1, Debian's fonts-noto-color-emoji.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools.training.sprites import ATLAS, COLUMNS, SIDE_PX
from tools.training.subjects import SUBJECTS

# The only bitmap size of the font.
_POINTS = 109
_MARGIN_PX = 40


def draw_atlas(font: ImageFont.FreeTypeFont) -> Image.Image:
    """Render all subjects row by row, each scaled to `SIDE_PX` and centred in its cell."""
    rows = -(-len(SUBJECTS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * SIDE_PX, rows * SIDE_PX))
    for number, character in enumerate(SUBJECTS.values()):
        canvas = Image.new("RGBA", (_POINTS * 2, _POINTS * 2))
        ImageDraw.Draw(canvas).text(
            (_MARGIN_PX, _MARGIN_PX), character, font=font, embedded_color=True
        )
        glyph = canvas.crop(canvas.getbbox())
        factor = SIDE_PX / max(glyph.size)
        glyph = glyph.resize(
            (round(glyph.width * factor), round(glyph.height * factor)), Image.Resampling.LANCZOS
        )
        cell = number % COLUMNS * SIDE_PX, number // COLUMNS * SIDE_PX
        offset = (SIDE_PX - glyph.width) // 2, (SIDE_PX - glyph.height) // 2
        atlas.paste(glyph, (cell[0] + offset[0], cell[1] + offset[1]))
    return atlas


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the pictograms into one atlas.")
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf")
    font = ImageFont.truetype(parser.parse_args().font, _POINTS)
    draw_atlas(font).save(ATLAS, optimize=True)
    print(f"{ATLAS}: {ATLAS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
