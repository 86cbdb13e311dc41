"""Write a caption bar above a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lungseg.arrays import U8
from lungseg.imaging.overlay import Colour

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

TEXT: Colour = (235, 235, 235)
_BAR: Colour = (24, 27, 30)
_CHARACTERS = 62  # of a usual letter's width in a line; the letters are at least _MIN_SIZE px high
_MIN_SIZE = 12
_MAX_LINES = 3  # of one text
_ELLIPSIS = "..."

Text = tuple[str, Colour]


def add_caption(picture: U8, texts: Sequence[str], legend: Sequence[Text]) -> U8:
    """Put a bar with texts above an RGB picture u8[H,W,3], each from a new line, and a legend in colours below them.

    Long texts are wrapped, then cut. Letters that the font lacks are drawn as boxes.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = picture.shape[1]
    size = max(_MIN_SIZE, round(1.8 * width / _CHARACTERS))
    font = ImageFont.load_default(size)
    margin, line_height = size // 2, round(1.4 * size)
    lines: list[list[Text]] = [
        [(line, TEXT)] for text in texts for line in wrap(_printable(text), font, width - 2 * margin)
    ]
    lines.append(list(legend))
    bar = Image.new("RGB", (width, line_height * len(lines) + margin), _BAR)
    draw = ImageDraw.Draw(bar)
    for number, line in enumerate(lines):
        left = float(margin)
        for text, colour in line:
            draw.text((left, margin / 2 + number * line_height), text, fill=colour, font=font)
            left += font.getlength(f"{text}  ")
    return np.concatenate([np.asarray(bar, np.uint8), picture])


def wrap(text: str, font: "FreeTypeFont | ImageFont", width: float) -> list[str]:
    """Break a text into lines of at most this width, between words where possible; cut it after a few lines."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < _MAX_LINES:
        length = len(rest)
        while length > 1 and font.getlength(rest[:length]) > width:
            length -= 1
        space = rest.rfind(" ", 0, length + 1)
        if length < len(rest) and space > 0:
            length = space
        lines.append(rest[:length].rstrip())
        rest = rest[length:].lstrip()
    if rest:
        lines[-1] = f"{lines[-1][: -len(_ELLIPSIS)]}{_ELLIPSIS}"
    return lines


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
