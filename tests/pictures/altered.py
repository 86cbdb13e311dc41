"""Alter X-rays: other devices, positions and diseases that leave them upright frontal chests, and views that do not.

Every function takes a random generator and an image u8[H,W] with light bones.
"""

from collections.abc import Callable

import cv2
import numpy as np

from tests.pictures.drawn import document, screenshot
from tests.pictures.fields import U8, Floats, Generator, grid

Alter = Callable[[Generator, U8], U8]

_MARKS = ("AP", "L", "R", "ERECT", "12:40")


def another_exposure(rng: Generator, image: U8) -> U8:
    """Change position, body shape, grey values and borders; the chest stays upright, frontal and complete."""
    image = _moved(rng, image, rng.normal(0, 6), tight=rng.random() < 0.25)
    if rng.random() < 0.5:
        image = _opacified(rng, image)
    image = _developed(rng, image)
    return _framed(rng, image)


def negative(rng: Generator, image: U8) -> U8:
    """Invert an upright chest."""
    return _framed(rng, 255 - _developed(rng, _moved(rng, image, rng.normal(0, 4))))


def on_side(rng: Generator, image: U8) -> U8:
    """Turn a chest by 90 degrees to either side, or roughly so with borders; some are inverted."""
    turned = _turned(rng, np.rot90(image, int(rng.choice((1, 3)))))
    return _framed(rng, _developed(rng, turned))


def upside_down(rng: Generator, image: U8) -> U8:
    """Turn a chest by 180 degrees, or mirror it top to bottom; some are inverted."""
    turned = _turned(rng, image[::-1] if rng.random() < 0.5 else image[::-1, ::-1])
    return _framed(rng, _developed(rng, turned))


def fragment(rng: Generator, image: U8) -> U8:
    """Cut out a quarter, a half, or another small window."""
    height, width = image.shape
    shares = ((0.5, 0.5), (0.5, rng.uniform(0.5, 1)), (rng.uniform(0.4, 0.95), 0.5), rng.uniform(0.2, 0.6, 2))
    down, across = np.multiply(shares[rng.choice(4, p=(0.4, 0.15, 0.15, 0.3))], (height, width)).astype(int)
    corners = (0, height - down), (0, width - across)
    if rng.random() < 0.5:
        top, left = (int(rng.choice(ends)) for ends in corners)
    else:
        top, left = (int(rng.integers(ends[1] + 1)) for ends in corners)
    cut = image[top : top + down, left : left + across]
    return _developed(rng, cut if rng.random() < 0.8 else 255 - cut)


def shown_in_a_page(rng: Generator, image: U8) -> U8:
    """Put a chest into a page of text, or on a screen; it covers less than a third of the area."""
    side = int(rng.integers(160, 257))
    page = (document, screenshot)[rng.integers(2)](rng, side)
    small = cv2.resize(
        _developed(rng, image), (int(rng.uniform(0.25, 0.55) * side), int(rng.uniform(0.25, 0.55) * side))
    )
    top, left = (int(rng.integers(0, side - length)) for length in small.shape)
    page[top : top + small.shape[0], left : left + small.shape[1]] = small
    return page


def side_by_side(rng: Generator, image: U8) -> U8:
    """Show two or four exposures of a chest in one picture."""
    pair = np.hstack([image, _developed(rng, image)])
    return pair if rng.random() < 0.5 else np.vstack([pair, _developed(rng, pair[:, ::-1])])


def threshold(rng: Generator, image: U8) -> U8:
    """Make a picture of two grey values."""
    moved = _moved(rng, image, rng.normal(0, 4))
    return np.where(moved > np.percentile(moved, rng.uniform(25, 75)), 255, 0).astype(np.uint8)


def _turned(rng: Generator, image: U8) -> U8:
    """Add a small turn, for some images a large one, and invert some."""
    angle = rng.normal(0, 4) if rng.random() < 0.7 else rng.uniform(-40, 40)
    moved = _moved(rng, np.ascontiguousarray(image), angle)
    return moved if rng.random() < 0.8 else 255 - moved


def _moved(rng: Generator, image: U8, angle: float, tight: bool = False) -> U8:
    """Rotate, stretch and shift, for `tight` cut to the lungs.

    The outside is black, or the border is continued; seldom it is white.
    """
    side = len(image)
    limits = (1.12, 1.35) if tight else (0.75, 1.12)
    zoom = rng.uniform(*limits) * np.exp(rng.normal(0, 0.07, 2))
    turn = cv2.getRotationMatrix2D((0.0, 0.0), angle, 1.0)[:, :2] * np.minimum(zoom, limits[1] + 0.05)[:, None]
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    middle = np.array((image.shape[1], side)) / 2
    shift = middle - turn @ middle + rng.normal(0, 0.03 * side, 2)
    mode = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE)[int(rng.random() < 0.5)]
    grey = 255 if rng.random() < 0.1 else 0
    move = np.column_stack([turn, shift])
    return np.asarray(cv2.warpAffine(image, move, image.shape[::-1], borderMode=mode, borderValue=grey), np.uint8)


def _opacified(rng: Generator, image: U8) -> U8:
    """Lighten patches where lungs are, for some images a whole side or both bases."""
    y, x = grid(len(image))
    x = cv2.resize(x, image.shape[::-1])
    y = cv2.resize(y, image.shape[::-1])
    haze = np.zeros(image.shape)
    for _ in range(int(rng.integers(1, 5))):
        where, size = rng.uniform((-0.7, -0.6), (0.7, 0.7)), rng.uniform(0.08, 0.35, 2)
        haze += np.exp(-np.square((x - where[0]) / size[0]) - np.square((y - where[1]) / size[1]))
    kind = rng.random()
    if kind < 0.35:
        haze += 1.5 / (1 + np.exp(-(x * rng.choice((-1, 1)) - 0.05) / 0.05)) * (np.abs(x) < 0.85)
    elif kind < 0.6:
        haze += 1.5 / (1 + np.exp(-(y - rng.uniform(0.0, 0.4)) / 0.08))
    level = float(np.percentile(image, 85))
    strength = np.clip(haze * rng.uniform(0.3, 1.0), 0, 0.95) * (image > 8)
    return np.asarray(image + strength * np.maximum(level - image, 0), np.uint8)


def _developed(rng: Generator, image: U8) -> U8:
    """Change the tone curve, the illumination, sharpness and noise."""
    field = image / 255.0
    low, high = rng.uniform(0, 0.15), rng.uniform(0.75, 1)
    black = image == 0
    field = np.clip((field - low * (rng.random() < 0.3)) / high, 0, 1) ** np.exp(rng.normal(0, 0.5))
    field = field + _tilt(rng, image.shape) * (rng.random() < 0.5)
    if rng.random() < 0.2:
        field = field - rng.uniform(0.3, 0.7) * cv2.GaussianBlur(field, (0, 0), rng.uniform(0.1, 0.3) * len(field))
        field = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    if rng.random() < 0.3:
        field = cv2.GaussianBlur(field, (0, 0), rng.uniform(0.5, 2))
    field = field + rng.normal(0, rng.uniform(0, 0.05), image.shape)
    return np.where(black, 0, np.clip(field * 255, 1, 255)).astype(np.uint8)


def _tilt(rng: Generator, shape: tuple[int, ...]) -> Floats:
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    return np.asarray(rng.uniform(-0.12, 0.12) * y + rng.uniform(-0.12, 0.12) * x)


def _framed(rng: Generator, image: U8) -> U8:
    """Add letters, tubes, collimation or padding to some images."""
    image = image.copy()
    height, width = image.shape
    for _ in range(int(rng.integers(0, 3))):
        place = (int(rng.choice((0.03, 0.8)) * width), int(rng.uniform(0.08, 0.95) * height))
        size = height / 128 * rng.uniform(0.2, 0.5)
        cv2.putText(image, _MARKS[rng.integers(5)], place, 0, size, int(rng.choice((0, 255))), 1)
    if rng.random() < 0.2:
        points = np.cumsum(rng.normal(0, 0.12, (5, 2)), 0) + rng.uniform(0.2, 0.8, 2)
        cv2.polylines(image, [np.asarray(points * (width, height), np.int32)], False, 240, 1)
    if rng.random() < 0.25:
        edge = rng.uniform(0, 0.07, 4) * (rng.random(4) < 0.6)
        top, bottom, left, right = (np.array((edge[0], 1 - edge[1], edge[2], 1 - edge[3]))).tolist()
        black = np.full_like(image, 255 if rng.random() < 0.1 else 0)
        rows = slice(int(top * height), int(bottom * height))
        columns = slice(int(left * width), int(right * width))
        black[rows, columns] = image[rows, columns]
        image = black
    if rng.random() < 0.3:
        wide = int(rng.uniform(0.03, 0.3) * height)
        pads = ((wide, wide), (0, 0)) if rng.random() < 0.5 else ((0, 0), (wide, wide))
        image = np.pad(image, pads, constant_values=255 if rng.random() < 0.1 else 0)
    return image
