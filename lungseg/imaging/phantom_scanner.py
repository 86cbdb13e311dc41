"""The scanner of phantoms: from attenuation to grey values, with the frame, grain and marks of its style."""

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Style = Literal["shenzhen", "montgomery"]
STYLES: tuple[Style, ...] = get_args(Style)
Floats = NDArray[np.float32]
Points = NDArray[np.float64]  # [..., n, 2] of (u, t)


def parse_table(text: str) -> NDArray[np.float64]:
    """Parse comma-separated rows of numbers."""
    return np.array([row.split() for row in text.split(",")], np.float64)


# Attenuation, and its grey in each style, fitted to quantiles of the real images inside and outside the lungs.
_TONE = parse_table("""0 .1 .2 .3 .4 .5 .6 .7 .8 .95 1.1 1.3 1.7, 14 74 106 133 155 175 191 198 203 209 222 234 246,
    6 22 37 62 95 134 165 181 195 214 240 251 255""")
# Collimation: minimum and maximum of left, top, right, bottom. Landscape plate, portrait plate, tight field.
_BOXES = parse_table(""".05 0 .91 .79 .13 .08 1 .81, .13 .01 .86 .87 .16 .04 .92 .96,
    -.01 -.01 .95 .975 .09 .04 1.02 1.01""")


def expose(rng: np.random.Generator, place: Points, style: Style, matter: Floats) -> NDArray[np.uint8]:
    """Convert attenuation to the scanner's grey image: tone, blur, grain, collimation and marks."""
    size, montgomery = len(matter), style == "montgomery"
    film = np.asarray(np.interp(matter + rng.normal(0, 0.03), _TONE[0], _TONE[1 + STYLES.index(style)]), np.float32)
    film += (4 if montgomery else 9) * rng.normal(0, 1) * np.sin(film * np.float32(np.pi / 255))
    cv2.GaussianBlur(film, (0, 0), (0.0013 if montgomery else 0.0009) * size, dst=film)
    field, marks = _frame(rng, place, style, size)
    grain = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), 0.6)
    film += (4.5 if montgomery else 8) * min(1.0, size / 512) ** 0.5 * grain * (1.3 - film * np.float32(1 / 280))
    return np.asarray(np.clip(np.rint(np.maximum(film * field, marks)), 0, 255), np.uint8)


def _frame(rng: np.random.Generator, place: Points, style: Style, size: int) -> tuple[Floats, Floats]:
    """Draw the collimated field, 0 to 1, and the burnt-in marks, 0 to 255; both f32[size,size]."""
    box, left = _BOXES[2 if style == "shenzhen" else int(rng.random() < 0.4)], rng.random() < 0.6
    edges = rng.uniform(box[:4], box[4:])
    x0, y0 = np.minimum(edges[:2], place @ (-1.1, -0.05, 1))  # keep both lungs in the field
    x1, y1 = np.maximum(edges[2:], place @ (1.1, 1.05, 1))
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) + rng.normal(0, 0.006, (4, 2))
    words = [("L" if left else "R", 0.8 if left else 0.15, 0.07, 1.4, 240)]
    if style == "montgomery":
        words = [("R", 0.12, 0.1, 1.6, 245), ("PA", 0.79, 0.078, 0.9, 250), ("ERECT", 0.77, 0.12, 0.9, 250)]
    field, marks = canvas = np.zeros((2, size, size), np.uint8)
    cv2.fillPoly(field, [np.asarray(np.rint((corners * size - 0.5) * 16), np.int32)], 255, cv2.LINE_AA, 4)
    move = rng.uniform(0, 0.05, 2)
    for word, u, v, scale, grey in words:
        x, y = (int(c) for c in np.rint(np.add(move, (u, v)) * size))
        cv2.putText(marks, word, (x, y), 0, scale * size / 1000, grey, max(1, size // 350), cv2.LINE_AA)
        if len(word) > 1:  # words on the plate are dark on a bright box
            plate = canvas[:, y - size // 33 : y + size // 150, x - size // 150 : x + len(word) * size // 45]
            plate[0], plate[1] = 0, 250 - plate[1]
    return np.multiply(field, np.float32(1 / 255), dtype=np.float32), np.asarray(marks, np.float32)
