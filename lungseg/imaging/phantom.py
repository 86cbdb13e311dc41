"""Draw synthetic chest X-rays with known masks of lungs, heart and opacities, in two scanner styles.

Anatomy uses chest units: u from -1 (wall of the right lung, left in the image) to 1, t from 0 (apex) to 1 (costophrenic
angle). Layers add up to an attenuation, which the scanner's tone curve maps to grey. The order of random draws does not
depend on the size, with grain last, so a seed gives the same patient at any size.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config.class_names import LEFT_LUNG, LUNG, ONE_CLASS, OPACITY, RIGHT_LUNG
from lungseg.imaging.phantom_scanner import STYLES, Floats, Points, Style, expose, parse_table

__all__ = ["CLASSES", "STYLES", "Patient", "Style", "draw", "draw_classes", "write_archive"]

CLASSES = (LUNG, RIGHT_LUNG, LEFT_LUNG, "heart", OPACITY)
"""Classes that phantoms have masks of."""

# Mean outlines of the real masks: u of the right lung without its sign, t, u of the left; the dome from wall to heart.
_WALL = parse_table(""".36 0 .36, .46 .015 .46, .61 .06 .61, .7 .11 .69, .765 .16 .75, .85 .25 .825, .893 .35 .865,
    .93 .5 .905, .957 .65 .925, .985 .8 .955, 1 .92 .98, .99 1 .97""")
_MEDIAL = parse_table(""".22 .02 .22, .15 .06 .14, .12 .12 .115, .125 .18 .13, .13 .22 .17, .14 .26 .205, .16 .31 .213,
    .175 .36 .21, .19 .42 .225, .215 .5 .29, .262 .6 .4, .285 .7 .5, .285 .78 .545, .28 .95 .56""")
_DOME = parse_table("0 0, .05 .3, .15 .56, .32 .8, .55 .96, .8 1, 1 .93")
# Columns: u and t from neck to flank, what `stout` adds to u, what `arms` adds to t.
_BODY = parse_table(""".28 -.7 .08 0, .31 -.3 .11 0, .6 -.16 .1 0, 1 -.1 .1 0, 1.4 0 .1 0, 1.9 .2 .1 -.14,
    2.6 .6 0 -.35, 2.6 1.6 0 -.56, 1.6 .75 .15 -.14, 1.27 .45 .16 0, 1.2 .64 .22 0, 1.16 .96 .26 0, 1.13 1.3 .27 0,
    1.13 2.2 .3 0""")
_SPINE = parse_table("0 -.7, 0 .5, .03 1, .03 2.2")
_HEART_END = 1.0  # t, where the mask of the heart ends
_VISIBLE = 0.08  # attenuation of an opacity that its mask marks
_HEART = parse_table("-.22 .5, .1 .36, .33 .55, .52 .82, .3 1.1, -.28 1.1")
# Centre lines of bones, with their widths; the cage follows the chest wall.
_CAGE = np.stack([_WALL[1:, [0, 2]].mean(1) + 0.03, _WALL[1:, 1], np.full(len(_WALL) - 1, 0.035)], 1)
_CLAVICLE = parse_table(
    ".1 .175 .12, .28 .14 .08, .55 .08 .07, .85 .01 .075, 1.12 -.03 .09, 1.32 -.015 .08, 1.36 0 .02"
)
_SCAPULA = parse_table("1.3 .03 .02, 1.22 .12 .1, 1.17 .25 .06, 1.07 .47 .04, 1.02 .48 .03, .96 .3 .03, .98 .1 .02")
_ARM = parse_table("1.37 .02 .12, 1.42 .1 .24, 1.6 .25 .14, 1.95 .5 .13, 2.6 .85 .13")
_VERTEBRA = parse_table("-1 0, 1 0, .86 .5, 1 .88, -1 .88, -.86 .5")
_ASPECT = 1.85  # mean lung length over half the chest width
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 40)), np.sin(np.linspace(0, 2 * np.pi, 40))], 1)
_BOTH = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])  # multiply a shape of the left side to get both sides
_SMALL = 128  # size at which smooth fields are computed


class Patient(NamedTuple):
    """Parameters that several structures of one patient share."""

    place: Points  # [2,3], chest units to fractions of the frame
    stout: float  # 0 thin to 1 stout
    heart: float  # added to the heart's border, in u
    domes: Points  # [2], right and left, height over the costophrenic angle in t
    arms: float  # 0 hanging to 1 raised sideways


def draw(seed: int | Sequence[int], style: Style, size: int = 512) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one patient: image u8[size,size] in 0..255, mask u8[size,size] in {0,1}, always with two components."""
    image, masks = draw_classes(seed, style, size)
    return image, masks[LUNG]


def draw_classes(
    seed: int | Sequence[int], style: Style, size: int = 512
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.uint8]]]:
    """Draw one patient as `draw` does; masks u8[size,size] in {0,1} of the classes `CLASSES`.

    The heart overlaps the lungs, opacities lie inside them; many patients have none.
    """
    rng = np.random.default_rng([STYLES.index(style), *np.atleast_1d(seed)])
    patient = _patient(rng, style)
    lungs = [_lung(rng, patient, left) for left in (0, 1)]
    air = _layer(patient, lungs, size, soften=0.0022)
    matter = _soft_tissue(patient, air, lungs)
    _add_hollows(rng, patient, matter, air)
    _add_bones(rng, patient, matter, air)
    _add_lung_texture(rng, patient, matter, air)
    findings = _add_findings(rng, patient, matter, air)
    right, left = (_mask(patient, [lung], size) for lung in lungs)
    heart = _spline(np.minimum(np.add(_HEART, (patient.heart, 0)), (np.inf, _HEART_END)))
    masks = {
        LUNG: right | left,
        RIGHT_LUNG: right,
        LEFT_LUNG: left,
        "heart": np.asarray(_layer(patient, [heart], size) > 0.5, np.uint8),
        OPACITY: (right | left) & np.asarray(findings > _VISIBLE, np.uint8),
    }
    return expose(rng, patient.place, style, matter), masks


def write_archive(
    folder: pathlib.Path, per_style: int, seed: int = 0, size: int = 512, classes: Sequence[str] = ONE_CLASS
) -> None:
    """Write `per_style` image and mask pairs for each style; keep existing pairs. Masks hold 0 and 255.

    classes: those of `CLASSES` among them, except lung, get a folder of masks of their own.
    """
    own_folders = {name: f"{name}_masks" for name in CLASSES if name in classes and name != LUNG}
    for style, item in ((style, item) for style in STYLES for item in range(per_style)):
        name = f"PHANTOM_{style[0].upper()}_{item:04d}.png"
        paths = [folder / f"phantom-{style}" / kind / name for kind in ("images", "masks", *own_folders.values())]
        if not all(path.exists() for path in paths):
            image, masks = draw_classes((seed, item), style, size)
            pictures = (image, *(masks[kind] * np.uint8(255) for kind in (LUNG, *own_folders)))
            for path, pixels in zip(paths, pictures, strict=True):
                storage.write_bytes(str(path), cv2.imencode(".png", pixels)[1].tobytes())


def _patient(rng: np.random.Generator, style: Style) -> Patient:
    """Draw body and position, distributed as the bounding boxes of the real masks."""
    build, tall, shift, stout = np.clip(rng.standard_normal(4), -1.9, 1.9)
    width, spread, height = (0.322, 0.032, 0.575) if style == "montgomery" else (0.342, 0.022, 0.668)
    angle, x = np.clip(rng.normal(0, 0.018), -0.04, 0.04), 0.52 + 0.013 * shift
    top = max(0.135 - 0.02 * tall + rng.uniform(-0.06, 0.06), 0.04)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    place = np.column_stack([turn * (width + spread * build, height + 0.073 * tall), (x, top)])
    heart = float(np.clip(rng.normal(0, 0.055), -0.08, 0.16))
    return Patient(place, 0.5 + 0.26 * stout, heart, rng.uniform((0.13, 0.10), (0.27, 0.23)), rng.uniform(0, 1))


def _spline(points: Points, steps: int = 8) -> Points:
    """Interpolate the points with a Catmull-Rom spline."""
    ends = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    a, b, c, d = (ends[i : len(ends) - 3 + i, None, :] for i in range(4))
    s = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = b + 0.5 * s * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * (3 * (b - c) + d - a)))
    return np.concatenate([curve.reshape(-1, points.shape[1]), points[-1:]])


def _ribbon(lines: Points, width: float | NDArray[np.float64]) -> Points:
    """Widen lines along their normals; width in u."""
    step = np.gradient(lines, axis=-2) * (1, _ASPECT)
    normal = step[..., ::-1] * (-1, 1) / (np.hypot(step[..., :1], step[..., 1:]) + 1e-9) / (1, _ASPECT)
    side = 0.5 * np.asarray(width)[..., None] * normal
    return np.concatenate([lines + side, (lines - side)[..., ::-1, :]], -2)


def _lung(rng: np.random.Generator, patient: Patient, left: int) -> Points:
    """Outline one lung as annotators do: mediastinum, apex, wall, diaphragm."""
    medial, wall = _MEDIAL[:, [2 * left, 1]], _WALL[:, [2 * left, 1]]
    grown = patient.heart * (0.6 + 0.4 * left) * np.clip((medial[:, 1] - 0.4) / 0.3, 0, 1)
    medial[:, 0] = np.maximum(medial[:, 0] + grown + rng.normal(0, 0.02) + rng.normal(0, 0.007, len(medial)), 0.085)
    wall[2:] += rng.normal(0, (0.015, 0)) + rng.normal(0, (0.009, 0.004), wall[2:].shape)
    foot = np.array([0.0, 1 - 0.93 * patient.domes[left]])
    foot[0] = np.interp(foot[1], medial[:, 1], medial[:, 0])
    rise = np.concatenate([[foot], medial[medial[:, 1] < foot[1] - 0.03][::-1], wall])
    base = wall[-1] + (foot - wall[-1]) * _DOME / (1, 0.93)
    base[1:-1, 1] += rng.normal(0, 0.005, len(base) - 2)
    return np.concatenate([_spline(rise), _spline(base)]) * (2 * left - 1, 1)


def _layer(patient: Patient, shapes: Sequence[Points] | Points, size: int, soften: float = 0.0013) -> Floats:
    """Fill shapes, including overlaps, then blur by `soften` image sides; f32[size,size] in 0..1."""
    canvas = np.zeros((size, size), np.uint8)
    frame = np.concatenate(list(shapes)) @ patient.place[:, :2].T + patient.place[:, 2]
    pixels = np.asarray(np.rint((frame * size - 0.5) * 16), np.int32)  # four fractional bits: OpenCV's `shift`
    for shape in np.split(pixels, np.cumsum([len(shape) for shape in shapes])[:-1]):
        cv2.fillPoly(canvas, [shape], 255, cv2.LINE_AA, 4)
    cv2.GaussianBlur(canvas, (0, 0), soften * size, dst=canvas)
    return np.multiply(canvas, np.float32(1 / 255), dtype=np.float32)


def _mask(patient: Patient, lungs: list[Points], size: int) -> NDArray[np.uint8]:
    """Rasterise the lungs, one component each, in {0,1}; sizes below 512 px are reduced from 512 px."""
    total = np.zeros((size, size), np.uint8)
    for outline in lungs:
        lung = np.asarray(_resize(_layer(patient, [outline], max(size, 512)), size) > 0.5, np.uint8)
        # The tip of the costophrenic angle may be separate.
        _, labels, stats, _ = cv2.connectedComponentsWithStats(lung)
        total[labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))] = 1
    return total


def _resize(field: NDArray[Any], size: int) -> Floats:
    """Resize a square field, f32."""
    method = cv2.INTER_AREA if len(field) > size else cv2.INTER_CUBIC if len(field) < _SMALL else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.asarray(field, np.float32), (size, size), interpolation=method), np.float32)


def _bone(patient: Patient, lines: Points, width: float | NDArray[np.float64], size: int) -> Floats:
    """Draw tubes with a rim brighter than the hollow, which is shifted upwards; f32[size,size] in 0..1."""
    hollow = _layer(patient, _ribbon(lines - (0, 0.004), 0.72 * width), size)
    return _layer(patient, _ribbon(lines, width), size) - np.float32(0.33) * hollow


def _soft_tissue(patient: Patient, air: Floats, lungs: list[Points]) -> Floats:
    """Sum soft tissue, mediastinum, heart and abdomen, minus the air; f32[size,size], about 0 to 1.7."""
    size, thin_air = len(air), _resize(air, _SMALL)
    half = _spline(_BODY[:, :2] + _BODY[:, 2:] * (patient.stout, patient.arms))
    body = _layer(patient, [np.concatenate([half, (half * (-1, 1))[::-1]])], _SMALL)
    inside = [np.asarray(field > 0.5, np.uint8) for field in (body, thin_air)]
    skin, pleura = (cv2.distanceTransform(field, cv2.DIST_L2, 5) / _SMALL for field in inside)
    t = np.clip((np.arange(_SMALL)[:, None] / _SMALL - patient.place[1, 2]) / patient.place[1, 1], -0.3, 1.3)
    flesh = (1 - np.square(1 - np.minimum(skin / 0.15, 1))) * (0.56 + 0.14 * t + 0.1 * patient.stout)
    # Lung continues behind heart and diaphragm, which therefore darken towards their edge.
    flesh = cv2.GaussianBlur(flesh, (0, 0), 1.2) - 0.14 * cv2.GaussianBlur(thin_air, (0, 0), 4.5)
    core = 0.2 * _layer(patient, [_ribbon(_SPINE, 0.42)], _SMALL, soften=0.035)
    core += 0.14 * _layer(patient, [_spline(np.add(_HEART, (patient.heart, 0)))], _SMALL, soften=0.02)
    flanks = 0.3 * _layer(patient, [_ribbon(_SPINE, 2.0)], _SMALL, soften=0.035)
    sides = parse_table("-3 2.2, -1.3 1.1, 0 .96, 1.3 1.1, 3 2.2")
    belly = np.concatenate([sides[:2], lungs[0][-49:], sides[2:3], lungs[1][:-50:-1], sides[3:]])
    below = _layer(patient, [belly], size, soften=0.003) * _resize(flanks, size)
    deep = cv2.GaussianBlur(0.28 + 0.16 * np.minimum(pleura / 0.09, 1), (0, 0), 1.5)
    matter = np.maximum(_resize(core, size), below) * (1 - air) + _resize(flesh, size) - air * _resize(deep, size)
    return np.asarray(matter, np.float32)


def _add_hollows(rng: np.random.Generator, patient: Patient, matter: Floats, air: Floats) -> None:
    """Add trachea, bronchi, gastric gas and, for some patients, breasts, in place."""
    bend, size = rng.normal(-0.02, 0.015), len(air)
    pipes = [parse_table(f"0 -.7, {bend} .05, {bend} .3, {u / 2 + bend} .36, {u} .41") for u in (-0.2, 0.24)]
    spot = (rng.uniform(0.5, 0.7), 1.11 - patient.domes[1])
    bubble = np.minimum(_CIRCLE, (1, 0.4)) * rng.uniform((0.12, 0.04), (0.22, 0.08)) + spot
    hollow = 0.07 * _layer(patient, [_ribbon(_spline(pipe), 0.09) for pipe in pipes], size, soften=0.006)
    hollow += rng.choice((0.0, 0.15, 0.4)) * _layer(patient, [bubble], size, soften=0.004)
    matter -= hollow * (1 - air)
    breasts = (_CIRCLE * (0.45, 0.25) + (0.64, rng.uniform(0.75, 0.9))) * _BOTH
    matter += 0.11 * max(0.0, rng.uniform(-1, 1)) * _layer(patient, breasts, size, soften=0.006)


def _ribs(rng: np.random.Generator) -> tuple[Points, Points]:
    """Compute the centre lines of posterior and anterior ribs, [n,24,2] each."""
    s, (left, number) = np.linspace(0, 0.5 * np.pi, 24), np.divmod(np.arange(24)[:, None], 12)
    first, pitch, drop, sweep = rng.uniform((-0.01, 0.086, 0.13, 0.16), (0.04, 0.102, 0.22, 0.26))
    start, fall = first + pitch * number + rng.normal(0, 0.004, (24, 1)), drop * np.minimum(1, 0.55 + 0.12 * number)
    end, inner = np.interp(start + fall - 0.02, _CAGE[:, 1], _CAGE[:, 0]), 0.22 + 0.03 * number
    back = start - 0.04 * np.sin(2 * s) + fall * (1 - np.cos(s)) ** 1.15
    front = start + fall + (sweep + 0.008 * number) * np.sin(s) ** 1.2
    behind = np.stack([(2 * left - 1) * (0.1 + (end - 0.1) * np.sin(s)), back], -1)
    return behind, np.stack([(2 * left - 1) * (inner + (end - inner) * np.cos(s)), front], -1)[number[:, 0] < 7]


def _add_bones(rng: np.random.Generator, patient: Patient, matter: Floats, air: Floats) -> None:
    """Add ribs, chest wall, clavicles, scapulae, arms and spine in place."""
    size, (back, front) = len(matter), _ribs(rng)
    u = np.abs(np.arange(size) / size - patient.place[0, 2]) / patient.place[0, 0]
    ribs = 0.13 * _bone(patient, back, 0.058, size)
    ribs += np.float32(0.15 * np.clip(u - 0.3, 0, 0.5)) * _bone(patient, front, 0.066, size)
    matter += rng.uniform(0.75, 1.25) * ribs * (0.3 + 0.7 * air)
    arm = _ARM * (1, 1.3 - 1.2 * patient.arms, 1)
    for points, amount in ((_CAGE, 0.07), (_CLAVICLE, 0.15), (_SCAPULA, 0.08), (arm, 0.15)):
        line = _spline(points)
        matter += amount * _bone(patient, line[:, :2] * _BOTH, line[:, 2], size)
    t = np.linspace(-0.7, 2.2, 28)[:, None]
    corner = np.stack([rng.normal(0, 0.02) * np.sin(2.2 * t), t], -1)
    scale = np.stack([0.09 + 0.022 * np.clip(t, -0.2, 1.3), np.full_like(t, t[1] - t[0])], -1)
    matter += 0.12 * _layer(patient, _VERTEBRA * scale + corner, size, soften=0.003)
    marks = parse_table("-.7 .32 .2 .17, .7 .32 .2 .17, 0 .75 .13 .22, 0 .93 1 .07")[:, None, None]
    dots = (_CIRCLE * marks[..., 2:] + marks[..., :2]) * scale + corner
    matter += 0.06 * _layer(patient, dots.reshape(-1, *_CIRCLE.shape), size, soften=0.002)


def _add_lung_texture(rng: np.random.Generator, patient: Patient, matter: Floats, air: Floats) -> None:
    """Add hila, vessels and fine texture in place, inside the lungs only."""
    size, s, shapes = len(matter), np.linspace(0, 1, 9)[:, None], []
    side, angle, start = np.repeat((-1, 1), 13), np.tile(np.linspace(-1.45, 1.5, 13), 2), np.tile((0.2, 0.43), (26, 1))
    for length, width in ((0.6, 0.05), (0.36, 0.028), (0.22, 0.015)):  # each vessel has three thinner branches
        bend = angle + rng.normal(0, 0.12, len(angle)) + rng.normal(0, 0.5, len(angle)) * s**1.5
        reach = rng.uniform(0.6, 1.3, (len(angle), 1)) * length / 9
        grown = start + np.cumsum(np.stack([np.cos(bend), np.sin(bend) / _ASPECT], -1) * reach, 0)  # [9,n,2]
        lines = np.stack([grown[..., 0] * side, grown[..., 1]], -1).swapaxes(0, 1)
        shapes += list(_ribbon(lines, width * (1 - 0.75 * s[:, 0])))
        start = grown[rng.integers(2, 7, (3, 1)), np.arange(len(angle))].reshape(-1, 2)
        side, angle = np.tile(side, 3), np.tile(angle, 3) + rng.normal(0, 0.6, 3 * len(angle))
    hila = _layer(patient, (_CIRCLE * (0.07, 0.1) + (0.2, 0.45)) * _BOTH, _SMALL, soften=0.025)
    near = _layer(patient, (_CIRCLE * (0.35, 0.28) + (0.3, 0.48)) * _BOTH, _SMALL, soften=0.09)
    noise = [_resize(rng.standard_normal((n, n), np.float32), m) for n, m in ((96, size), (220, size), (8, _SMALL))]
    web = 0.8 - np.abs(noise[0]) - 0.8 * np.abs(noise[1])
    texture = _resize(0.05 + 0.09 * near, size) * _layer(patient, shapes, size, soften=0.0018) + 0.018 * web
    matter += rng.uniform(0.8, 1.25) * air * (texture + _resize(0.2 * hila + 0.018 * noise[2], size))


def _add_findings(rng: np.random.Generator, patient: Patient, matter: Floats, air: Floats) -> Floats:
    """Add patchy opacities and effusion in place, inside the lungs only; return them. Many patients have none."""
    noise = [_resize(rng.standard_normal((n, n), np.float32), _SMALL) for n in (20, 45)]
    spot = rng.uniform((0.1, 0.06, -0.75, 0.12), (0.35, 0.22, 0.75, 0.8), (rng.integers(1, 4), 1, 4))
    haze = _layer(patient, _CIRCLE * spot[..., :2] + spot[..., 2:], _SMALL, soften=0.035) * rng.uniform(0.15, 0.35)
    haze *= np.clip(0.7 + 0.35 * (noise[0] + noise[1]), 0, None) * (rng.random() < 0.4)
    side, level, wet = rng.choice((-1, 1)), rng.uniform(0.72, 1.0), 0.33 * (rng.random() < 0.15)
    fluid = parse_table(".1 .5, .1 .03, .6 0, .85 -.06, 1.1 -.2, 1.1 .5") * (side, 1) + (0, level)
    findings: Floats = air * (
        _resize(haze, len(air)) + np.float32(wet) * _layer(patient, [fluid], len(air), soften=0.012)
    )
    matter += findings
    return findings
