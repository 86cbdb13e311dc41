"""Write a caption bar above a picture."""

import unicodedata
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from lungseg.arrays import U8
from lungseg.imaging.overlay import Colour

TEXT: Colour = (235, 235, 235)
_BAR: Colour = (24, 27, 30)
_CHARACTERS = 62  # of a usual letter's width in a line; the letters are at least _MIN_SIZE px high
_MIN_SIZE = 12
_MAX_LINES = 3  # of one text
_ELLIPSIS = "..."
_FONT = "sans"  # one of the fonts in OpenCV: Latin, Greek, Cyrillic, Chinese, Japanese, Korean, and more
_WEIGHT = 500  # between regular and bold

Text = tuple[str, Colour]


def add_caption(picture: U8, texts: Sequence[str], legend: Sequence[Text]) -> U8:
    """Put a bar with texts above an RGB picture u8[H,W,3], each from a new line, and a legend in colours below them.

    Long texts are wrapped, then cut. Letters that the font lacks are drawn as question marks.
    """
    width = picture.shape[1]
    size = max(_MIN_SIZE, round(1.8 * width / _CHARACTERS))
    pen = _Pen(size)
    margin, line_height = size // 2, round(1.4 * size)
    lines: list[list[Text]] = [
        [(line, TEXT)] for text in texts for line in wrap(_printable(text), pen.measure, width - 2 * margin)
    ]
    lines.append(list(legend))
    bar = np.full((line_height * len(lines) + margin, width, 3), _BAR, np.uint8)
    for number, line in enumerate(lines):
        left = margin
        for text, colour in line:
            pen.draw(bar, text, (left, margin // 2 + size + number * line_height), colour)
            left += pen.measure(text) + size
    return np.concatenate([bar, picture])


class _Pen:
    """Draws text of one size, px."""

    def __init__(self, size: int) -> None:
        self._font, self._size = cv2.FontFace(_FONT), size

    def measure(self, text: str) -> int:
        """Return the width of a text, px."""
        return int(cv2.getTextSize((0, 0), text, (0, 0), self._font, self._size, _WEIGHT)[2])

    def draw(self, image: U8, text: str, start: tuple[int, int], colour: Colour) -> None:
        """Draw a text on an RGB image u8[H,W,3]; start: left end of its base line, px."""
        cv2.putText(image, text, start, colour, self._font, self._size, _WEIGHT)


def wrap(text: str, measure: Callable[[str], float], width: float) -> list[str]:
    """Break a text into lines of at most this width, between words where possible; cut it after a few lines."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < _MAX_LINES:
        length = len(rest)
        while length > 1 and measure(rest[:length]) > width:
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
    # The font places a separate accent beside its letter; macOS writes names with separate ones.
    composed = unicodedata.normalize("NFC", text)
    return "".join(character if character.isprintable() else "?" for character in composed)
