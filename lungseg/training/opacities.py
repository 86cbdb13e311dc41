"""Augmentation that paints diseases: opacities inside the lungs, and gas below them.

The training data show few opaque lungs. Without painted ones a model follows the dark area instead of the lung's
outline, and takes air in the stomach for lung. Masks never change: an opaque lung is still lung, and gas is not.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import U8

Floats = NDArray[np.float32]

_GRID = 128  # px; opacities are smooth, so they are drawn at this size and enlarged
_LUNG_AREA = 0.01  # smallest share of the image that is painted as a lung
_MAX_OPACITY = 0.97
_GRAIN = 0.5  # share of the fine texture that stays visible in an opacity


def paint_opacities(image: U8, mask: U8, random: np.random.Generator) -> U8:
    """Brighten parts of the lungs of u8[S,S] towards the grey level of soft tissue.

    Each lung is left alone, or gets an effusion, several consolidations, or haze. mask: u8[S,S] in {0,1}. An image
    without lungs or without tissue beside them is returned as it is.
    """
    tissue = image[(image > 0) & (mask == 0)]
    lungs = _find_lungs(mask)
    if not lungs or tissue.size < image.size // 100:
        return image
    grey = np.float32(np.quantile(tissue, random.uniform(0.55, 0.85)))
    grid = np.zeros((_GRID, _GRID), np.float32)
    for lung in lungs:
        kind, is_healthy = random.random(), random.random() < 0.3
        draw = _draw_effusion if kind < 0.4 else _draw_consolidations if kind < 0.85 else _draw_haze
        opacity = draw(lung, random) * (0.75 + 0.25 * _noise(32, random))
        if not is_healthy:
            grid = np.maximum(grid, np.where(cv2.dilate(lung, np.ones((3, 3), np.uint8)) > 0, opacity, np.float32(0.0)))
    side = image.shape[0]
    # Opacity fades over a few pixels at the lung's border, as the border itself does.
    soft_mask = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), side / 128)
    opacity = np.clip(enlarge(grid, side), 0.0, _MAX_OPACITY) * soft_mask
    pixels = image.astype(np.float32)
    grain = pixels - cv2.GaussianBlur(pixels, (0, 0), side / 100)
    return _keep_black(image, pixels + opacity * (np.maximum(grey, pixels) - pixels + _GRAIN * grain))


def paint_gas(image: U8, mask: U8, random: np.random.Generator) -> U8:
    """Darken an ellipse of u8[S,S] below one lung, like air in the stomach or bowel; never inside the lungs."""
    lungs = _find_lungs(mask)
    if not lungs:
        return image
    lung = lungs[random.integers(len(lungs))]
    rows, columns = np.nonzero(lung)
    x = random.uniform(columns.min(), columns.max())
    radius_x, radius_y = random.uniform((0.03, 0.02), (0.14, 0.08)) * _GRID
    lowest = rows[np.abs(columns - x) <= 1.0].max(initial=0) or rows.max()
    y = lowest + radius_y + random.uniform(0.02, 0.06) * _GRID
    down, across = np.mgrid[:_GRID, :_GRID].astype(np.float32)
    distance = np.hypot((across - x) / radius_x, (down - y) / radius_y) + 0.4 * (_noise(8, random) - 0.5)
    strength = np.clip((1.1 - distance) * 5.0, 0.0, 1.0) * np.float32(random.uniform(0.5, 1.0))
    grey = np.float32(np.quantile(image[mask > 0], random.uniform(0.1, 0.6)))
    pixels = image.astype(np.float32)
    share = np.clip(enlarge(strength, image.shape[0]), 0.0, 1.0)
    share[cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0] = 0.0
    return _keep_black(image, pixels + share * (np.minimum(grey, pixels) - pixels))


def _draw_effusion(lung: U8, random: np.random.Generator) -> Floats:
    """Return opacity f32[G,G] below a level that rises towards the chest wall: an effusion, or a white lower lobe."""
    left, top, width, height = cv2.boundingRect(lung)
    down, across = np.mgrid[:_GRID, :_GRID].astype(np.float32)
    middle = left + width / 2.0
    outward = 1.0 if middle >= _GRID / 2.0 else -1.0
    level = top + height * (1.0 - random.uniform(0.05, 0.6)) - outward * random.uniform(0.0, 0.5) * (across - middle)
    level += 0.15 * height * (_noise(5, random) - 0.5)
    softness = max(1.0, height * random.uniform(0.02, 0.3))
    return np.asarray(np.clip((down - level) / softness + 0.5, 0.0, 1.0) * random.uniform(0.5, 1.0), np.float32)


def _draw_consolidations(lung: U8, random: np.random.Generator) -> Floats:
    """Return opacity f32[G,G] of one to four irregular ellipses with centres inside the lung."""
    rows, columns = np.nonzero(lung)
    size = np.array(cv2.boundingRect(lung)[2:])
    down, across = np.mgrid[:_GRID, :_GRID].astype(np.float32)
    opacity = np.zeros((_GRID, _GRID), np.float32)
    for _ in range(random.integers(1, 5)):
        centre, angle = random.integers(len(rows)), random.uniform(0.0, np.pi)
        radius_x, radius_y = np.maximum(1.0, random.uniform(0.05, 0.3, 2) * size)
        x, y = across - columns[centre], down - rows[centre]
        along, beside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        distance = np.hypot(along / radius_x, beside / radius_y) + 0.8 * (_noise(9, random) - 0.5)
        opacity = np.maximum(opacity, np.clip(1.5 - distance, 0.0, 1.0) * random.uniform(0.3, 0.95))
    return np.asarray(opacity, np.float32)


def _draw_haze(lung: U8, random: np.random.Generator) -> Floats:  # noqa: ARG001  # called like the others
    """Return a weak, uneven opacity f32[G,G] of the whole lung."""
    return np.asarray((0.3 + 0.7 * _noise(4, random)) * random.uniform(0.2, 0.8), np.float32)


def _find_lungs(mask: U8) -> list[U8]:
    """Return each lung of a mask u8[S,S] in {0,1} as u8[G,G] in {0,1}."""
    grid = np.asarray(cv2.resize(mask * np.uint8(255), (_GRID, _GRID), interpolation=cv2.INTER_AREA))
    count, labels, stats, _ = cv2.connectedComponentsWithStats((grid > 127).astype(np.uint8), connectivity=8)
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= _LUNG_AREA * grid.size]
    return [(labels == i).astype(np.uint8) for i in large]


def _noise(knots: int, random: np.random.Generator) -> Floats:
    """Return smooth noise f32[G,G], about 0 to 1, with this many knots a side."""
    return enlarge(random.random((knots, knots), np.float32), _GRID)


def enlarge(field: Floats, side: int) -> Floats:
    """Interpolate a field f32[K,K,...] smoothly to f32[side,side,...]."""
    return np.asarray(cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)


def _keep_black(image: U8, painted: NDArray[np.floating[Any]]) -> U8:
    """Round to u8; black stays black, and no other pixel becomes black."""
    return np.where(image > 0, np.rint(np.clip(painted, 1.0, 255.0)), 0.0).astype(np.uint8)
