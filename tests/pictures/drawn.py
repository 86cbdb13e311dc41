"""Draw pictures that are no frontal chest X-ray: photographs, other anatomy, documents, masks, noise.

Every function takes a random generator and the side in px, and returns u8[side,side].
"""

from collections.abc import Callable

import cv2
import numpy as np

from lungseg.imaging import phantom
from tests.pictures.fields import U8, Floats, Generator, clouds, grid, to_grey

Draw = Callable[[Generator, int], U8]

_WORDS = (
    "patient",
    "name",
    "exam",
    "report",
    "normal",
    "date",
    "File",
    "Edit",
    "View",
    "Help",
    "Open",
    "Save",
    "120",
    "kV",
    "3.2",
    "mAs",
    "total",
    "left",
    "right",
)


def white_noise(rng: Generator, side: int) -> U8:
    """Draw independent grey values, uniform, normal or two-valued, at a random grain."""
    grain = int(rng.choice((1, 1, 2, 4, 8)))
    shape = (side // grain, side // grain)
    noise = (rng.random(shape), rng.normal(0.5, 0.15, shape), (rng.random(shape) < rng.uniform(0.02, 0.5)) * 1.0)
    return to_grey(_resize(noise[rng.integers(3)], side))


def cloud_noise(rng: Generator, side: int) -> U8:
    """Draw noise whose amplitude falls with frequency, as in clouds and photographs."""
    return to_grey(clouds(rng, side, rng.uniform(0.6, 2.2)))


def gradient(rng: Generator, side: int) -> U8:
    """Draw a linear, radial or periodic pattern with a little noise."""
    y, x = grid(side)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    radius = np.hypot(x - rng.uniform(-0.8, 0.8), y - rng.uniform(-0.8, 0.8))
    waves = np.sin(rng.uniform(3, 30) * along + rng.uniform(0, 6)), np.sign(np.sin(rng.uniform(3, 30) * along))
    checks = np.sign(np.sin(rng.uniform(4, 20) * x) * np.sin(rng.uniform(4, 20) * y))
    pattern = (along, radius, *waves, checks)[rng.integers(5)]
    return to_grey(pattern + rng.normal(0, rng.uniform(0, 0.2), pattern.shape))


def leaves(rng: Generator, side: int) -> U8:
    """Draw many shaded shapes of all sizes that hide each other, as the objects of a photograph do."""
    image = to_grey(clouds(rng, side, 2))
    texture = clouds(rng, side, 1.2)
    for size in np.sort(rng.pareto(1.2, int(rng.integers(5, 250))) * 0.03)[::-1]:
        image = _paint(rng, image, texture, min(float(size), 0.6))
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 2))


def landscape(rng: Generator, side: int) -> U8:
    """Draw a sky, ridges that get darker towards the viewer, and a few upright objects."""
    y, x = grid(side)
    image = 0.9 - 0.3 * (y + 1) / 2 * rng.uniform(-1, 1) + 0.1 * clouds(rng, side, 2)
    for level in np.sort(rng.uniform(-0.6, 0.8, int(rng.integers(1, 5)))):
        ridge = level + 0.25 * clouds(rng, side, 2.2)[0] * rng.uniform(0.1, 1)
        shade = rng.uniform(0, 0.8) + 0.15 * clouds(rng, side, 1)
        image = np.where(y > ridge[None, :], shade, image)
    for place in rng.uniform(-0.9, 0.9, int(rng.integers(0, 6))):
        top, wide = rng.uniform(-0.8, 0.6), rng.uniform(0.02, 0.2)
        image = np.where((np.abs(x - place) < wide) & (y > top), rng.uniform(0, 1), image)
    return to_grey(image)


def portrait(rng: Generator, side: int) -> U8:
    """Draw a head with hair, eyes and shoulders in front of a background."""
    image = to_grey(clouds(rng, side, 1.5) * rng.uniform(0.1, 1))
    x, y, head = rng.uniform(0.35, 0.65), rng.uniform(0.3, 0.5), rng.uniform(0.12, 0.28)
    skin, hair, dress = (int(value) for value in rng.integers(0, 256, 3))
    _ellipse(image, (x, y + 2.6 * head), (1.7 * head, 1.5 * head), dress)
    _ellipse(image, (x, y - 0.15 * head), (1.05 * head, 1.3 * head), hair)
    _ellipse(image, (x, y + 0.15 * head), (0.8 * head, 1.1 * head), skin)
    for eye in (-0.35, 0.35):
        _ellipse(image, (x + eye * head, y), (0.15 * head, 0.08 * head), 255 - skin)
    _ellipse(image, (x, y + 0.7 * head), (0.3 * head, 0.08 * head), 255 - skin)
    return _speckled(rng, cv2.GaussianBlur(image, (0, 0), side * rng.uniform(0.004, 0.02)), 8)


def document(rng: Generator, side: int) -> U8:
    """Draw a page of text with a heading and perhaps a table."""
    page = np.full((side, side), int(rng.integers(200, 256)), np.uint8)
    margin, step = rng.uniform(0.03, 0.15), rng.uniform(0.025, 0.07)
    for row in np.arange(margin, 1 - margin, step):
        if rng.random() < 0.85:
            _write(rng, page, (margin, row), (rng.uniform(0.4, 1) - margin, step), int(rng.integers(0, 80)))
    if rng.random() < 0.4:
        for place in np.linspace(margin, 1 - margin, int(rng.integers(3, 8))):
            _line(page, (margin, place), (1 - margin, place), 60)
            _line(page, (place, margin), (place, 1 - margin), 60)
    return page


def screenshot(rng: Generator, side: int) -> U8:
    """Draw windows with title bars, buttons and text on a light or dark desktop."""
    dark = rng.random() < 0.5
    image = np.full((side, side), int(rng.integers(10, 90) if dark else rng.integers(150, 250)), np.uint8)
    for _ in range(int(rng.integers(1, 6))):
        left, top = rng.uniform(0, 0.6, 2)
        right, bottom = np.minimum(1, np.add((left, top), rng.uniform(0.25, 0.9, 2)))
        pane = int(rng.integers(20, 100) if dark else rng.integers(200, 256))
        _box(image, (left, top), (right, bottom), pane)
        _box(image, (left, top), (right, top + 0.05), int(rng.integers(0, 256)))
        for row in np.arange(top + 0.07, bottom - 0.03, rng.uniform(0.03, 0.07)):
            _write(rng, image, (left + 0.02, row), (right - left - 0.04, 0.03), 255 - pane)
    return image


def chart(rng: Generator, side: int) -> U8:
    """Draw axes with bars or curves."""
    image = np.full((side, side), 255, np.uint8)
    _line(image, (0.1, 0.05), (0.1, 0.9), 0)
    _line(image, (0.1, 0.9), (0.95, 0.9), 0)
    number = int(rng.integers(3, 12))
    for place, height in zip(np.linspace(0.15, 0.88, number), rng.uniform(0.1, 0.8, number), strict=True):
        _box(image, (place, 0.9 - height), (place + 0.6 / number, 0.9), int(rng.integers(30, 220)))
    _write(rng, image, (0.2, 0.03), (0.6, 0.05), 0)
    return image


def lung_mask(rng: Generator, side: int) -> U8:
    """Draw a two-valued mask of lungs, light on dark or dark on light, perhaps of one lung."""
    mask = phantom.draw(int(rng.integers(1 << 30)), phantom.STYLES[rng.integers(2)], side)[1]
    if rng.random() < 0.2:
        mask[:, : side // 2] = 0
    low, high = sorted(int(value) for value in rng.choice(256, 2, replace=False))
    low, high = (0, 255) if rng.random() < 0.6 else (low, max(high, low + 20) & 255)
    return np.where(mask == int(rng.random() < 0.8), high, low).astype(np.uint8)


def blob_mask(rng: Generator, side: int) -> U8:
    """Draw a two-valued picture of ellipses and polygons."""
    image = np.zeros((side, side), np.uint8)
    for _ in range(int(rng.integers(1, 6))):
        _ellipse(image, rng.uniform(0.1, 0.9, 2), rng.uniform(0.03, 0.4, 2), 255, rng.uniform(0, 180))
    return image if rng.random() < 0.7 else 255 - image


def _paint(rng: Generator, image: U8, texture: Floats, size: float) -> U8:
    """Add one shaded ellipse, box or triangle of a size in parts of the side."""
    side, shape = len(image), np.zeros_like(image)
    centre, kind = rng.uniform(-0.1, 1.1, 2), rng.integers(3)
    if kind == 0:
        _ellipse(shape, centre, size * rng.uniform(0.3, 1, 2), 1, rng.uniform(0, 180))
    else:
        corners = np.sort(rng.uniform(0, 2 * np.pi, 3)) if kind == 1 else np.arange(4) * np.pi / 2 + rng.uniform(0, 3)
        points = centre + size * np.stack([np.cos(corners), np.sin(corners)], 1)
        cv2.fillPoly(shape, [np.asarray(points * side, np.int32)], 1)
    y, x = grid(side)
    shade = rng.uniform(0, 255) + rng.uniform(-60, 60) * x + rng.uniform(-60, 60) * y + rng.uniform(0, 60) * texture
    return np.where(shape == 1, np.clip(shade, 0, 255), image).astype(np.uint8)


def _resize(field: Floats, side: int) -> Floats:
    return np.asarray(cv2.resize(field, (side, side), interpolation=cv2.INTER_NEAREST))


def _speckled(rng: Generator, image: U8, deviation: float) -> U8:
    return np.clip(image + rng.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


def _pixels(image: U8, point: object) -> tuple[int, int]:
    x, y = np.rint(np.asarray(point, np.float64) * len(image)).astype(int)
    return int(x), int(y)


def _ellipse(image: U8, centre: object, axes: object, grey: float, angle: float = 0.0) -> None:
    cv2.ellipse(image, _pixels(image, centre), _pixels(image, axes), angle, 0, 360, int(grey), -1)


def _box(image: U8, corner: object, opposite: object, grey: float) -> None:
    cv2.rectangle(image, _pixels(image, corner), _pixels(image, opposite), int(grey), -1)


def _line(image: U8, start: object, end: object, grey: float, width: float = 0.002) -> None:
    cv2.line(image, _pixels(image, start), _pixels(image, end), int(grey), max(1, round(width * len(image))))


def _write(rng: Generator, image: U8, place: tuple[float, float], size: tuple[float, float], grey: int) -> None:
    """Write random words; place of the upper left corner and size of the line in parts of the side."""
    letters = max(1, int(size[0] / (0.55 * size[1])))
    text = " ".join(rng.choice(_WORDS, letters // 3 + 1))[:letters]
    where = _pixels(image, (place[0], place[1] + 0.8 * size[1]))
    cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, size[1] * len(image) / 40, grey, 1, cv2.LINE_AA)


DRAWN: dict[str, dict[str, Draw]] = {
    "drawn photographs": {"leaves": leaves, "landscape": landscape, "portrait": portrait},
    "documents and charts": {"document": document, "chart": chart},
    "screenshots": {"screenshot": screenshot},
    "two-valued masks": {"lung mask": lung_mask, "blobs": blob_mask},
    "noise and patterns": {"white noise": white_noise, "clouds": cloud_noise, "gradient": gradient},
}
"""Functions by kind of picture."""
