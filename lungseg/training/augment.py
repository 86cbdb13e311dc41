"""Random changes to training samples, seeded so that neither ranks nor a restart change what an image looks like.

Each kind of change draws from a generator of its own, and always as much: setting one does not shift what the others
draw, nor will a kind that is added later. Black stays black under every change of grey: it is padding or collimation,
of which a scanner's exposure, noise and tone say nothing, and a net that saw grey bars in training would meet black
ones in use.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.config import AugmentSettings

U8 = NDArray[np.uint8]
Floats = NDArray[np.float32]

_ELASTIC_GRID = 8  # knots a side; what bends is about half a lung wide
_CURVE_PIECES = 9  # of a jittered grey curve
_TOE = 32.0  # grey levels over which contrast and brightness set in
_SHOULDER = 0.25  # of the full range, over which what they brighten is pressed together
_SMALL = 96  # px; shading is smooth, and computed at this size
_TILT_DEG = 4.0  # a shutter is askew by at most this
_MARGIN = 0.02  # of the side, between a shutter and the lungs
_NORMAL = np.array([NormalDist().inv_cdf((level + 0.5) / 256.0) for level in range(256)])  # by byte, sd 0.993


class _Kind(IntEnum):
    """What draws; the numbers are part of the seed, so they stay as they are and new kinds get new ones."""

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


_Draws = Callable[[_Kind], np.random.Generator]


def augment(image: U8, mask: U8, settings: AugmentSettings, key: tuple[int, int, str]) -> tuple[U8, U8]:
    """Change an image u8[S,S] and its mask u8[S,S] in {0,1} alike; key is (seed, epoch, image_id).

    In the order of an exposure: shutters are closed, the patient stands otherwise, bones shade, the grey curve is
    another, the detector blurs and is noisy. What is not set costs nothing; with nothing set both come back as they
    are. The arrays passed in are never written to.
    """
    seed, epoch, image_id = key
    name = zlib.crc32(image_id.encode())

    def draws(kind: _Kind) -> np.random.Generator:
        return np.random.default_rng((seed, epoch, name, kind))

    if settings.collimate:
        image = _collimate(image, mask, settings.collimate, draws(_Kind.COLLIMATE))
    if settings.rotate_deg or settings.scale or settings.shift or settings.elastic or settings.flip:
        image, mask = _move(image, mask, _paths(image.shape[0], settings, draws))
    if settings.shadow:
        image = _shade(image, settings.shadow, draws(_Kind.SHADOW))
    if settings.gamma or settings.contrast or settings.brightness or settings.jitter:
        image = _as_u8(cv2.LUT(image, _curve(settings, draws)))
    if settings.blur:
        image = _blur(image, settings.blur, draws(_Kind.BLUR))
    if settings.noise:
        image = _add_noise(image, settings.noise, draws(_Kind.NOISE))
    return image, mask


def flips_allowed(classes: Sequence[str]) -> bool:
    """Say whether a left-right flip keeps the classes true: none is named after a side, as `left_lung` is."""
    return not any({"left", "right"} & set(name.split("_")) for name in classes)


def _paths(side: int, settings: AugmentSettings, draws: _Draws) -> Floats:
    """Say for each pixel where it is taken from: f32[S,S,2] of (x, y), all movements in one, interpolated once.

    A picture is enlarged and turned about its centre, shifted, and last mirrored; the inverse of that stands here.
    Elastic deformation is Simard et al.'s (ICDAR 2003): a smooth field of uniform displacements. Theirs is smoothed by
    a Gaussian, this one by cubic interpolation of a coarse grid, at a hundredth of the cost.
    """
    angle = math.radians(settings.rotate_deg * draws(_Kind.ROTATE).uniform(-1.0, 1.0))
    enlarged = 1.0 + settings.scale * draws(_Kind.SCALE).uniform(-1.0, 1.0)
    right, down = side * settings.shift * draws(_Kind.SHIFT).uniform(-1.0, 1.0, 2)
    mirrored = draws(_Kind.FLIP).random() < settings.flip
    centre = (side - 1) / 2.0
    # The mirror is exact, as every number here is a multiple of a half.
    x = (np.arange(side)[:: -1 if mirrored else 1] - centre - right) / enlarged
    y = (np.arange(side)[:, None] - centre - down) / enlarged
    # Zeros where none is asked for. All is added in place: to memory that is new it would take three times as long.
    random = draws(_Kind.ELASTIC)
    reach = side * settings.elastic * random.random()
    bends = reach * random.uniform(-1.0, 1.0, (_ELASTIC_GRID, _ELASTIC_GRID, 2))
    paths = _enlarge(bends.astype(np.float32), side)
    paths[..., 0] += (math.cos(angle) * x + centre).astype(np.float32)
    paths[..., 0] -= (math.sin(angle) * y).astype(np.float32)
    paths[..., 1] += (math.sin(angle) * x + centre).astype(np.float32)
    paths[..., 1] += (math.cos(angle) * y).astype(np.float32)
    return paths


def _enlarge(knots: Floats, side: int) -> Floats:
    """Draw smooth surfaces through knots f32[K,K,...]: f32[side,side,...]."""
    return np.asarray(cv2.resize(knots, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)


def _move(image: U8, mask: U8, paths: Floats) -> tuple[U8, U8]:
    """Take each pixel from where it comes; what comes in from outside is black, as padding is."""
    moved = cv2.remap(image, paths, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    share = cv2.remap(mask * np.uint8(255), paths, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    return moved, (share > 127).astype(np.uint8)


def _curve(settings: AugmentSettings, draws: _Draws) -> U8:
    """Make one grey curve of all that is asked for: u8[256], rising, 0 -> 0.

    One table, so that greys are rounded once and cut off at the ends once.
    """
    levels = np.arange(256)
    after = (levels / 255.0) ** math.exp(settings.gamma * draws(_Kind.GAMMA).uniform(-1.0, 1.0))
    if settings.jitter:
        # Slopes are drawn, not heights: heights of knots that are near each other make plateaus and cliffs.
        random = draws(_Kind.JITTER)
        widths = random.uniform(0.5, 1.5, _CURVE_PIECES)
        heights = widths * np.exp(settings.jitter * random.uniform(-1.0, 1.0, _CURVE_PIECES))
        knots, moved = (np.cumsum([0.0, *lengths]) / lengths.sum() for lengths in (widths, heights))
        after = np.interp(after, knots, moved)
    change = settings.contrast * draws(_Kind.CONTRAST).uniform(-1.0, 1.0) * (after - 0.5)
    change += settings.brightness * draws(_Kind.BRIGHTNESS).uniform(-1.0, 1.0)
    # As film does, the curve has a toe and a shoulder. A step from 0 to the next level would make air beside the body,
    # salt and pepper; without the shoulder heart and belly would be cut off to one white.
    change *= np.minimum(1.0, levels / _TOE)
    change *= np.where(change > 0.0, np.minimum(1.0, (1.0 - after) / _SHOULDER), 1.0)
    # Rising, too, where a strong change outweighs toe or shoulder.
    after = np.maximum.accumulate(after + change)
    return np.rint(255.0 * np.clip(after, 0.0, 1.0)).astype(np.uint8)


def _shade(image: U8, strength: float, random: np.random.Generator) -> U8:
    """Brighten and dim u8[S,S] by factors in 1 +- strength: soft blobs, and bands that fall from the spine as ribs do.

    What is bright changes less, by its distance to white, as bones over the belly hardly show. So the grey of a lung,
    and the stripes in it, tell less of where it ends than its outline does. The mask has no say: it would be told.
    """
    blobs = _enlarge(random.uniform(-1.0, 1.0, (4, 4)).astype(np.float32), _SMALL)
    places = _enlarge(random.random((3, 3), np.float32), _SMALL)
    much, ribs = random.uniform(-1.0, 1.0, 2)
    spine, distance, slope, bend, phase = random.uniform((0.4, 0.08, 0.0, 0.0, 0.0), (0.6, 0.14, 0.4, 0.8, 1.0))
    down, across = np.mgrid[:_SMALL, :_SMALL] / _SMALL
    # Rounded at the spine, where real ribs lie behind the heart and a kink would not.
    aside = np.hypot(across - spine, 0.08)
    bands = np.cos(2.0 * np.pi * ((down - slope * aside - bend * aside**2) / distance + phase))
    shade = strength * np.clip(much * blobs + ribs * np.clip(places, 0.0, 1.0) * bands, -1.0, 1.0)
    field = cv2.resize(shade.astype(np.float32), image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    levels = np.arange(256, dtype=np.float32)
    change = cv2.multiply(cv2.LUT(image, levels * (1.0 - levels / 255.0)), field, dst=field)
    return _as_u8(cv2.add(image, change, dtype=cv2.CV_8U))


def _blur(image: U8, most: float, random: np.random.Generator) -> U8:
    """Blur u8[S,S] by a Gaussian of 0 to `most` px standard deviation."""
    sigma = most * random.random()
    reach = 2 * math.ceil(3.0 * sigma) + 1
    # Copied where the picture was not black: nothing runs over into the padding.
    return _as_u8(cv2.copyTo(cv2.GaussianBlur(image, (reach, reach), sigma), image))


def _add_noise(image: U8, most: float, random: np.random.Generator) -> U8:
    """Add Gaussian grain to u8[S,S], its standard deviation 0 to `most` of the full range."""
    # A byte a pixel and its normal quantile: an eighth of the time of normal numbers, and alike once rounded to greys.
    quantiles = np.rint(255.0 * most * random.random() * _NORMAL).astype(np.int16)
    grain = cv2.LUT(random.integers(0, 256, image.shape, np.uint8), quantiles)
    return _as_u8(cv2.add(image, grain, dst=image.copy(), mask=image, dtype=cv2.CV_8U))


def _collimate(image: U8, mask: U8, chance: float, random: np.random.Generator) -> U8:
    """Close shutters on one to four sides of u8[S,S], somewhat askew, black or grey, never over the lungs of the mask.

    They close over the picture, not over its padding, and at most up to the box around the lungs and a margin.
    """
    happens, black = random.random(2) < (chance, 0.5)
    closed = random.permutation(4) < random.integers(1, 5)
    shares = random.random((2, 2)) * closed.reshape(2, 2)  # low and high end, of x and y
    angle = math.radians(random.uniform(-_TILT_DEG, _TILT_DEG))
    grey = np.float32(random.uniform(0.0, 160.0) * (not black))
    left, top, width, height = cv2.boundingRect(image)
    if not happens:
        return image
    picture = (left, top, width, height)
    # Without lungs the middle half stays open, as it does around any.
    lungs = cv2.boundingRect(mask) if mask.any() else (left + width // 4, top + height // 4, width // 2, height // 2)
    axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    margin = max(2.0, _MARGIN * image.shape[0])
    outer, inner = _extent(picture, axes, 2.0), _extent(lungs, axes, margin)
    # Where lungs reach the edge there is no room, and the shutter stays outside.
    (x0, y0), (x1, y1) = outer + shares * np.maximum(0.0, (inner - outer) * [[1], [-1]]) * [[1], [-1]]
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) @ axes
    opened = cv2.fillPoly(np.zeros_like(image), [np.rint(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    result, box = image.copy(), (slice(top, top + height), slice(left, left + width))
    result[box] = np.rint(grey + (image[box] - grey) * (opened[box] * np.float32(1 / 255))).astype(np.uint8)
    return result


def _extent(box: Sequence[int], axes: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Find how far a box (left, top, width, height) reaches along two axes [2,2]: f64[2,2], lowest and highest."""
    left, top, width, height = box
    corners = np.array([(x, y) for x in (left, left + width - 1) for y in (top, top + height - 1)])
    along = corners @ axes.T
    return np.array([along.min(axis=0) - margin, along.max(axis=0) + margin])


def _as_u8(image: object) -> U8:
    """Say to the type checker what OpenCV returns."""
    assert isinstance(image, np.ndarray)
    return image
