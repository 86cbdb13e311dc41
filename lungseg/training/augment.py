"""Random augmentation of training samples; the result depends on (seed, epoch, image_id) only.

Each kind of augmentation has its own random generator, so that enabling one, or adding one later, does not change the
others. Black stays black under every grey-level change: it is padding or collimation, which is also black at inference.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import U8
from lungseg.config import AugmentSettings
from lungseg.config.class_names import LUNGS, ONE_CLASS, OPACITY, mirrored_order
from lungseg.schema import is_annotated
from lungseg.training.opacities import enlarge, paint_gas, paint_opacities

Floats = NDArray[np.float32]

_ELASTIC_GRID = 8  # knots per side; bends are about half a lung wide
_CURVE_PIECES = 9  # linear pieces of a jittered grey curve
_TOE = 32.0  # grey levels over which contrast and brightness rise from zero
_SHOULDER = 0.25  # share of the full range below white in which brightening is compressed
_SHADING_SIZE = 96  # px; shading is smooth, so it is computed at this size
_TILT_DEG = 4.0  # maximum tilt of the collimator
_MARGIN = 0.02  # share of the side, between a collimator edge and the lungs
_NORMAL = np.array([NormalDist().inv_cdf((level + 0.5) / 256.0) for level in range(256)])  # quantiles, sd 0.993


class _Kind(IntEnum):
    """Kinds of augmentation. The numbers are part of the seed: never change them, and give new kinds new ones."""

    ROTATE = 1
    SCALE = 2
    SHIFT = 3
    ELASTIC = 4
    FLIP = 5
    GAMMA = 6
    CONTRAST = 7
    BRIGHTNESS = 8
    JITTER = 9
    SHADOW = 10
    BLUR = 11
    NOISE = 12
    COLLIMATE = 13
    OPACITY = 14
    GAS = 15


_MakeGenerator = Callable[[_Kind], np.random.Generator]


def augment(
    image: U8,
    masks: U8,
    settings: AugmentSettings,
    key: tuple[int, int, str],
    classes: Sequence[str] = ONE_CLASS,
) -> tuple[U8, U8]:
    """Augment an image u8[S,S] and its masks u8[K,S,S]; key is (seed, epoch, image_id).

    A flip exchanges the masks of classes on the left and on the right. Masks that are not annotated stay so; where none
    is, nothing is painted and no border is drawn, because they would have to leave out unknown lungs.

    Applied in the order of an exposure: disease, collimation, patient position, shading by bones, grey curve, detector
    blur and noise. Without any enabled kind, both arrays are returned as they are. The input arrays are never modified.
    """
    seed, epoch, image_id = key
    image_key = zlib.crc32(image_id.encode())

    def generator(kind: _Kind) -> np.random.Generator:
        return np.random.default_rng((seed, epoch, image_key, kind))

    image = _paint_disease(image, dict(zip(classes, masks, strict=True)), settings, generator)
    if settings.collimate and any(map(is_annotated, masks)):
        image = _collimate(image, _join(masks), settings.collimate, generator(_Kind.COLLIMATE))
    if settings.rotate_deg or settings.scale or settings.shift or settings.elastic or settings.flip:
        image, masks = _warp(image, masks, _source_positions(image.shape[0], settings, generator))
        masks = masks[mirrored_order(classes)] if _is_flipped(settings, generator) else masks
    if settings.shadow:
        image = _shade(image, settings.shadow, generator(_Kind.SHADOW))
    if settings.gamma or settings.contrast or settings.brightness or settings.jitter:
        image = _as_u8(cv2.LUT(image, _grey_curve(settings, generator)))
    if settings.blur:
        image = _blur(image, settings.blur, generator(_Kind.BLUR))
    if settings.noise:
        image = _add_noise(image, settings.noise, generator(_Kind.NOISE))
    return image, masks


def _join(masks: Sequence[U8] | U8) -> U8:
    """Return the union u8[S,S] in {0,1} of masks u8[S,S] of which one at least is annotated."""
    first, *others = [mask for mask in masks if is_annotated(mask)]
    for other in others:
        first = first | other
    return first


def _paint_disease(image: U8, masks: Mapping[str, U8], settings: AugmentSettings, generator: _MakeGenerator) -> U8:
    """Paint opacities and gas around the lungs of masks by class.

    An image whose opacities are annotated gets no painted ones, which its mask would not show; nor does one whose lungs
    are not annotated.
    """
    lungs = [masks[name] for name in LUNGS if name in masks and is_annotated(masks[name])]
    if not lungs:
        return image
    mask = _join(lungs)
    has_opacities = OPACITY in masks and is_annotated(masks[OPACITY])
    for kind, chance, paint in (
        (_Kind.OPACITY, settings.opacity, paint_opacities),
        (_Kind.GAS, settings.gas, paint_gas),
    ):
        if kind == _Kind.OPACITY and has_opacities:
            continue
        if chance and (random := generator(kind)).random() < chance:
            image = paint(image, mask, random)
    return image


def _source_positions(side: int, settings: AugmentSettings, generator: _MakeGenerator) -> Floats:
    """Return the source position (x, y) of each pixel, f32[S,S,2], for all geometric augmentations together.

    An image is scaled and rotated about its centre, shifted, and finally flipped; this computes the inverse. Elastic
    deformation follows Simard et al. (ICDAR 2003): a smooth field of uniform displacements. It is smoothed by cubic
    interpolation of a coarse grid instead of a Gaussian, at a hundredth of the cost.
    """
    angle = math.radians(settings.rotate_deg * generator(_Kind.ROTATE).uniform(-1.0, 1.0))
    scale = 1.0 + settings.scale * generator(_Kind.SCALE).uniform(-1.0, 1.0)
    right, down = side * settings.shift * generator(_Kind.SHIFT).uniform(-1.0, 1.0, 2)
    flipped = _is_flipped(settings, generator)
    centre = (side - 1) / 2.0
    # The flip is exact, because all coordinates are multiples of one half.
    x = (np.arange(side)[:: -1 if flipped else 1] - centre - right) / scale
    y = (np.arange(side)[:, None] - centre - down) / scale
    # Zeros if disabled. Sums are computed in place, three times faster than in new arrays.
    random = generator(_Kind.ELASTIC)
    amplitude = side * settings.elastic * random.random()
    displacements = amplitude * random.uniform(-1.0, 1.0, (_ELASTIC_GRID, _ELASTIC_GRID, 2))
    positions = enlarge(displacements.astype(np.float32), side)
    positions[..., 0] += (math.cos(angle) * x + centre).astype(np.float32)
    positions[..., 0] -= (math.sin(angle) * y).astype(np.float32)
    positions[..., 1] += (math.sin(angle) * x + centre).astype(np.float32)
    positions[..., 1] += (math.cos(angle) * y).astype(np.float32)
    return positions


def _is_flipped(settings: AugmentSettings, generator: _MakeGenerator) -> bool:
    return bool(generator(_Kind.FLIP).random() < settings.flip)


def _warp(image: U8, masks: U8, positions: Floats) -> tuple[U8, U8]:
    """Sample image and masks at the source positions; pixels from outside the image are black."""
    warped = cv2.remap(image, positions, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    return warped, np.stack([_warp_mask(mask, positions) if is_annotated(mask) else mask for mask in masks])


def _warp_mask(mask: U8, positions: Floats) -> U8:
    share = cv2.remap(mask * np.uint8(255), positions, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    return np.asarray(share > 127, np.uint8)


def _grey_curve(settings: AugmentSettings, generator: _MakeGenerator) -> U8:
    """Return the enabled grey-level changes as one table: u8[256], rising, 0 -> 0.

    A single table rounds and clips only once.
    """
    levels = np.arange(256)
    after = (levels / 255.0) ** math.exp(settings.gamma * generator(_Kind.GAMMA).uniform(-1.0, 1.0))
    if settings.jitter:
        # Draws slopes, not heights: random heights of neighbouring knots would make plateaus and steep jumps.
        random = generator(_Kind.JITTER)
        widths = random.uniform(0.5, 1.5, _CURVE_PIECES)
        heights = widths * np.exp(settings.jitter * random.uniform(-1.0, 1.0, _CURVE_PIECES))
        inputs, outputs = (np.cumsum([0.0, *lengths]) / lengths.sum() for lengths in (widths, heights))
        after = np.interp(after, inputs, outputs)
    change = settings.contrast * generator(_Kind.CONTRAST).uniform(-1.0, 1.0) * (after - 0.5)
    change += settings.brightness * generator(_Kind.BRIGHTNESS).uniform(-1.0, 1.0)
    # Like film, the curve has a toe and a shoulder. A jump from 0 to the next level would turn the air beside the body
    # into noise; without the shoulder, heart and abdomen would be clipped to white.
    change *= np.minimum(1.0, levels / _TOE)
    change *= np.where(change > 0.0, np.minimum(1.0, (1.0 - after) / _SHOULDER), 1.0)
    # Keeps the curve rising where a strong change outweighs toe or shoulder.
    after = np.maximum.accumulate(after + change)
    return np.rint(255.0 * np.clip(after, 0.0, 1.0)).astype(np.uint8)


def _shade(image: U8, strength: float, random: np.random.Generator) -> U8:
    """Brighten and darken u8[S,S] by factors in 1 +- strength: soft blobs, and rib-like bands that fall from the spine.

    Bright pixels change less, by their distance to white, as bones over the abdomen are hardly visible. The model then
    relies more on the outline of a lung than on its grey level and stripes. Independent of the mask, which the shading
    would otherwise reveal.
    """
    blobs = enlarge(random.uniform(-1.0, 1.0, (4, 4)).astype(np.float32), _SHADING_SIZE)
    rib_weights = enlarge(random.random((3, 3), np.float32), _SHADING_SIZE)
    blob_strength, rib_strength = random.uniform(-1.0, 1.0, 2)
    spine, distance, slope, bend, phase = random.uniform((0.4, 0.08, 0.0, 0.0, 0.0), (0.6, 0.14, 0.4, 0.8, 1.0))
    down, across = np.mgrid[:_SHADING_SIZE, :_SHADING_SIZE] / _SHADING_SIZE
    # Rounded at the spine, to avoid a kink that real ribs do not have.
    aside = np.hypot(across - spine, 0.08)
    bands = np.cos(2.0 * np.pi * ((down - slope * aside - bend * aside**2) / distance + phase))
    shade = strength * np.clip(blob_strength * blobs + rib_strength * np.clip(rib_weights, 0.0, 1.0) * bands, -1.0, 1.0)
    field = cv2.resize(shade.astype(np.float32), image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    levels = np.arange(256, dtype=np.float32)
    change = cv2.multiply(cv2.LUT(image, levels * (1.0 - levels / 255.0)), field, dst=field)
    return _as_u8(cv2.add(image, change, dtype=cv2.CV_8U))


def _blur(image: U8, max_sigma: float, random: np.random.Generator) -> U8:
    """Blur u8[S,S] by a Gaussian with a standard deviation of 0 to max_sigma px."""
    sigma = max_sigma * random.random()
    kernel = 2 * math.ceil(3.0 * sigma) + 1
    # Only pixels that were not black change, so that nothing blurs into the padding.
    return _as_u8(cv2.copyTo(cv2.GaussianBlur(image, (kernel, kernel), sigma), image))


def _add_noise(image: U8, max_sigma: float, random: np.random.Generator) -> U8:
    """Add Gaussian noise to u8[S,S]; max_sigma: largest standard deviation, as a share of the full range."""
    # Random bytes mapped to normal quantiles: eight times faster than normal numbers, and equal once rounded.
    quantiles = np.rint(255.0 * max_sigma * random.random() * _NORMAL).astype(np.int16)
    noise = cv2.LUT(random.integers(0, 256, image.shape, np.uint8), quantiles)
    return _as_u8(cv2.add(image, noise, dst=image.copy(), mask=image, dtype=cv2.CV_8U))


def _collimate(image: U8, mask: U8, chance: float, random: np.random.Generator) -> U8:
    """Add slightly tilted black or grey borders on one to four sides of u8[S,S], never over the lungs of the mask.

    They cover the image without its padding, at most up to the bounding box of the lungs plus a margin.
    """
    is_applied, is_black = random.random(2) < (chance, 0.5)
    closed = random.permutation(4) < random.integers(1, 5)
    shares = random.random((2, 2)) * closed.reshape(2, 2)  # low and high end, of x and y
    angle = math.radians(random.uniform(-_TILT_DEG, _TILT_DEG))
    grey = np.float32(random.uniform(0.0, 160.0) * (not is_black))
    left, top, width, height = cv2.boundingRect(image)
    if not is_applied:
        return image
    content = (left, top, width, height)
    # Without lungs, the central half stays uncovered.
    lungs = cv2.boundingRect(mask) if mask.any() else (left + width // 4, top + height // 4, width // 2, height // 2)
    axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    margin = max(2.0, _MARGIN * image.shape[0])
    outer, inner = _extent(content, axes, 2.0), _extent(lungs, axes, margin)
    # A border stays outside the image on a side where the lungs reach the edge.
    (x0, y0), (x1, y1) = outer + shares * np.maximum(0.0, (inner - outer) * [[1], [-1]]) * [[1], [-1]]
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) @ axes
    uncovered = cv2.fillPoly(np.zeros_like(image), [np.rint(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    result, box = image.copy(), (slice(top, top + height), slice(left, left + width))
    result[box] = np.rint(grey + (image[box] - grey) * (uncovered[box] * np.float32(1 / 255))).astype(np.uint8)
    return result


def _extent(box: Sequence[int], axes: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Return the lowest and highest coordinates f64[2,2] of a box (left, top, width, height) along two axes [2,2]."""
    left, top, width, height = box
    corners = np.array([(x, y) for x in (left, left + width - 1) for y in (top, top + height - 1)])
    along = corners @ axes.T
    return np.array([along.min(axis=0) - margin, along.max(axis=0) + margin])


def _as_u8(image: object) -> U8:
    """Narrow the type of an OpenCV result."""
    assert isinstance(image, np.ndarray)
    return image
