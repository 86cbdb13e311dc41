"""Draw radiographs and slices of other anatomy than a frontal chest, roughly: u8[side,side], light bones."""

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.pictures.drawn import Draw
from tests.pictures.fields import U8, Floats, Generator, clouds, grid, to_grey

Points = NDArray[np.float64]


def hand(rng: Generator, side: int) -> U8:
    """Draw a hand or a foot: a palm, five rays of bones, a wrist."""
    tissue, bone = _canvas(side), _canvas(side)
    palm = np.array((rng.uniform(0.4, 0.6), rng.uniform(0.55, 0.7)))
    _blob(tissue, palm, (rng.uniform(0.15, 0.22), 0.2))
    _tube(tissue, np.array([palm, palm + (0, 0.6)]), 0.2)
    for ray, angle in enumerate(np.deg2rad(np.linspace(-50, 35, 5) + rng.normal(0, 6, 5))):
        step = np.array((np.sin(angle), -np.cos(angle)))
        length = rng.uniform(0.28, 0.36) if ray else 0.25
        _tube(tissue, np.array([palm, palm + step * (length + 0.12)]), 0.085)
        for start, end in ((0.12, 0.24), (0.26, 0.36), (0.38, 0.44)):
            _tube(bone, palm + np.outer((start, end), step) * (length + 0.12) / 0.44, 0.035)
    for shift in (-0.05, 0.05):
        _tube(bone, palm + ((shift, 0.15), (shift, 0.6)), 0.06)
    return _develop(rng, tissue, bone, turn=rng.uniform(-180, 180))


def limb(rng: Generator, side: int) -> U8:
    """Draw a long bone with a joint: a knee, an elbow, a shin."""
    tissue, bone = _canvas(side), _canvas(side)
    knee = np.array((rng.uniform(0.4, 0.6), rng.uniform(0.35, 0.65)))
    bend = rng.normal(0, 0.15)
    for end in ((knee[0] - bend, -0.1), (knee[0] + bend, 1.1)):
        _tube(tissue, np.array([knee, end]), rng.uniform(0.22, 0.4))
        _tube(bone, np.array([knee, end]), rng.uniform(0.07, 0.12))
        _blob(bone, knee + (np.array(end) - knee) * 0.08, (0.12, 0.06))
    if rng.random() < 0.5:
        _tube(bone, np.array([knee + (0.11, 0.06), (knee[0] + bend + 0.12, 1.1)]), 0.04)
    return _develop(rng, tissue, bone, turn=rng.choice((0, 90)) + rng.normal(0, 15))


def skull(rng: Generator, side: int) -> U8:
    """Draw a skull: a bright rim, eye sockets or a jaw."""
    tissue, bone = _canvas(side), _canvas(side)
    centre = np.array((0.5 + rng.normal(0, 0.04), rng.uniform(0.38, 0.48)))
    size = np.array((rng.uniform(0.26, 0.36), rng.uniform(0.3, 0.38)))
    _blob(tissue, centre, size * 1.06)
    _blob(bone, centre, size)
    _blob(bone, centre, size * 0.93, 0.35)
    _tube(tissue, np.array([centre, (centre[0], 1.2)]), 0.3)
    _tube(bone, np.array([centre + (0, 0.3), (centre[0], 1.2)]), 0.12)
    _blob(bone, centre + (0, size[1] * 0.85), size * (0.55, 0.4))
    for eye in (-0.4, 0.4):
        _blob(bone, centre + size * (eye, 0.35), size * 0.24, 0.15)
    return _develop(rng, tissue, bone)


def abdomen(rng: Generator, side: int) -> U8:
    """Draw an abdomen or a pelvis: a spine, wings of the pelvis, gas in the bowel."""
    tissue, bone = _canvas(side), _canvas(side)
    _blob(tissue, (0.5, 0.5), (rng.uniform(0.4, 0.6), 0.9))
    top = rng.uniform(-0.2, 0.3)
    for level in np.arange(-0.1, top + 0.45, 0.1):
        _blob(bone, (0.5, level), (0.06, 0.04))
    for sign in (-1, 1):
        _blob(bone, (0.5 + sign * 0.2, top + 0.5), (0.16, 0.13), angle=-sign * 40)
        _blob(bone, (0.5 + sign * 0.2, top + 0.48), (0.1, 0.09), 0.5, angle=-sign * 40)
        _tube(bone, np.array([(0.5 + sign * 0.27, top + 0.7), (0.5 + sign * 0.33, top + 1.2)]), 0.09)
        _blob(bone, (0.5 + sign * 0.26, top + 0.68), (0.07, 0.07))
    for place in rng.uniform((0.15, 0.05), (0.85, 0.9), (int(rng.integers(2, 14)), 2)):
        _blob(tissue, place, rng.uniform(0.02, 0.09, 2), rng.uniform(0.3, 0.8), rng.uniform(0, 180))
    return _develop(rng, tissue, bone)


def lateral_chest(rng: Generator, side: int) -> U8:
    """Draw a lateral chest: one dark lung field between the spine at the back and the heart in front."""
    tissue, bone = _canvas(side), _canvas(side)
    _blob(tissue, (0.5, 0.55), (rng.uniform(0.36, 0.46), rng.uniform(0.55, 0.75)))
    _tube(tissue, np.array([(0.3, 0.12), (rng.uniform(0.1, 0.6), -0.1)]), 0.3)
    lung = np.array([(0.42, 0.1), (0.68, 0.2), (0.8, 0.5), (0.8, 0.85), (0.6, 0.72), (0.4, 0.7), (0.24, 0.74)])
    lung = np.concatenate([lung, [(0.2, 0.5), (0.3, 0.25)]]) + rng.normal(0, 0.02, (9, 2))
    _area(tissue, lung, rng.uniform(0.15, 0.4))
    _blob(tissue, (0.34, 0.6), (rng.uniform(0.1, 0.15), rng.uniform(0.12, 0.18)), 0.9, 30)
    for level in np.arange(0.02, 1.1, 0.075):
        _blob(bone, (0.74 + 0.08 * np.sin(2.6 * level), level), (0.045, 0.03))
    for level in np.arange(0.2, 0.85, 0.07):
        _tube(bone, np.array([(0.76, level - 0.04), (0.5, level + 0.02), (0.25, level + 0.12)]), 0.016, 0.35)
    _tube(bone, np.array([(0.24, 0.25), (0.17, 0.6)]), 0.03, 0.6)
    image = _develop(rng, tissue, bone)
    return image if rng.random() < 0.5 else np.ascontiguousarray(image[:, ::-1])


def spine(rng: Generator, side: int) -> U8:
    """Draw a column of vertebrae in tissue, straight or bent."""
    tissue, bone = _canvas(side), _canvas(side)
    _tube(tissue, np.array([(0.5, -0.2), (0.5, 1.2)]), rng.uniform(0.5, 1.2))
    bend, phase = rng.uniform(0, 0.12), rng.uniform(0, 6)
    for level in np.arange(0, 1.1, rng.uniform(0.08, 0.14)):
        x = 0.5 + bend * np.sin(4 * level + phase)
        _blob(bone, (x, level), (rng.uniform(0.07, 0.1), 0.04))
        _blob(bone, (x + 0.14, level), (0.06, 0.02), 0.5)
    return _develop(rng, tissue, bone, turn=rng.choice((0, 0, 90)))


def ct_slice(rng: Generator, side: int) -> U8:
    """Draw an axial slice: an oval body with a bright rim, organs, perhaps two lungs, on black."""
    tissue, bone = _canvas(side), _canvas(side)
    body = np.array((rng.uniform(0.35, 0.48), rng.uniform(0.24, 0.38)))
    _blob(tissue, (0.5, 0.5), body, rng.uniform(0.5, 0.9))
    _blob(tissue, (0.5, 0.5), body * 0.9, rng.uniform(0.4, 0.9))
    for _ in range(int(rng.integers(2, 9))):
        _blob(tissue, rng.uniform(0.3, 0.7, 2), rng.uniform(0.03, 0.12, 2), rng.uniform(0.2, 1))
    if rng.random() < 0.5:
        for sign in (-1, 1):
            _blob(tissue, (0.5 + sign * body[0] * 0.5, 0.48), body * rng.uniform((0.25, 0.5), (0.4, 0.8)), 0.05)
    _blob(bone, (0.5, 0.5 + body[1] * 0.7), (0.06, 0.05))
    for angle in rng.uniform(0, 2 * np.pi, 12):
        _blob(bone, 0.5 + body * 0.88 * (np.cos(angle), np.sin(angle)), (0.025, 0.012))
    return _develop(rng, tissue, bone, thick=False)


def head_slice(rng: Generator, side: int) -> U8:
    """Draw a slice of a head: a rim, folded brain, dark ventricles."""
    tissue, bone = _canvas(side), _canvas(side)
    size = np.array((rng.uniform(0.28, 0.38), rng.uniform(0.36, 0.45)))
    _blob(tissue, (0.5, 0.5), size, 0.9)
    _blob(tissue, (0.5, 0.5), size * 0.94, 0.1)
    _blob(tissue, (0.5, 0.5), size * 0.88, rng.uniform(0.4, 0.7))
    tissue += (tissue > 0.3) * 0.2 * np.sign(clouds(rng, side, 1.2))
    for sign in (-1, 1):
        _blob(tissue, (0.5 + sign * 0.05, 0.48), (0.03, 0.1), rng.choice((0.1, 0.95)), sign * 15)
    return _develop(rng, tissue, bone, thick=False)


def ultrasound(rng: Generator, side: int) -> U8:
    """Draw a fan of speckle on black, with dark cysts."""
    y, x = grid(side)
    apex = rng.uniform(-1.6, -1)
    radius, angle = np.hypot(x, y - apex), np.abs(np.arctan2(x, y - apex))
    speckle = np.abs(clouds(rng, side, 0.5)) + 0.6 * clouds(rng, side, 2)
    fan = (radius > 0.3) & (radius < rng.uniform(1.7, 2.3)) & (angle < rng.uniform(0.4, 0.8))
    return to_grey(fan * np.clip(speckle - speckle.min(), 0, 4) * np.exp(-rng.uniform(0, 0.7) * radius))


def breast(rng: Generator, side: int) -> U8:
    """Draw a mammogram: a half ellipse of streaky tissue at one side, on black."""
    y, x = grid(side)
    edge = np.square((x + 1) / rng.uniform(0.8, 1.5)) + np.square(y / rng.uniform(0.6, 1.1))
    image = to_grey((edge < 1) * (1.2 - edge + 0.25 * clouds(rng, side, 1.6)).clip(0.2))
    return image if rng.random() < 0.5 else np.ascontiguousarray(image[:, ::-1])


def _canvas(side: int) -> Floats:
    return np.zeros((side, side))


def _blob(canvas: Floats, centre: object, axes: object, value: float = 1.0, angle: float = 0.0) -> None:
    (x, y), (a, b) = (np.asarray(point, np.float64) * len(canvas) for point in (centre, axes))
    box = ((float(x), float(y)), (2 * float(a), 2 * float(b)), float(angle))
    cv2.ellipse(canvas, box, float(value), -1)


def _tube(canvas: Floats, points: Points, width: float, value: float = 1.0) -> None:
    """Draw a line through points, of a width in parts of the side."""
    line = np.rint(points * len(canvas)).astype(np.int32)
    cv2.polylines(canvas, [line], False, float(value), max(1, round(width * len(canvas))))


def _area(canvas: Floats, corners: Points, value: float) -> None:
    cv2.fillPoly(canvas, [np.rint(corners * len(canvas)).astype(np.int32)], float(value))


def _develop(rng: Generator, tissue: Floats, bone: Floats, turn: float = 0.0, thick: bool = True) -> U8:
    """Add tissue and bone, round off both by their thickness, turn, scale, shift, and add grain."""
    side = len(tissue)
    if thick:
        tissue = cv2.GaussianBlur(tissue, (0, 0), rng.uniform(0.01, 0.04) * side)
    bone = cv2.GaussianBlur(bone, (0, 0), rng.uniform(0.003, 0.01) * side)
    total = tissue + rng.uniform(0.3, 1.5) * bone + 0.04 * clouds(rng, side, 1.5) * (tissue > 0.05)
    move = cv2.getRotationMatrix2D((side / 2, side / 2), turn + rng.normal(0, 4), rng.uniform(0.75, 1.2))
    move[:, 2] += rng.normal(0, 0.03 * side, 2)
    total = cv2.warpAffine(total, move, (side, side), borderMode=cv2.BORDER_CONSTANT)
    return to_grey(np.clip(total, 0, None) ** rng.uniform(0.5, 1.5) + rng.normal(0, rng.uniform(0, 0.04), total.shape))


ANATOMY: dict[str, dict[str, Draw]] = {
    "other anatomy, drawn": {"hand": hand, "limb": limb, "skull": skull, "abdomen": abdomen, "spine": spine},
    "lateral chest, drawn": {"lateral chest": lateral_chest},
    "slices and ultrasound, drawn": {"ct": ct_slice, "head": head_slice, "ultrasound": ultrasound, "breast": breast},
}
"""Functions by kind of picture."""
