"""Select cases of the predictions and draw them with the outlines of their masks."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.orientation import other_shape, to_upright
from lungseg.imaging.overlay import colours_of, to_hex
from lungseg.predictions.class_masks import read_shown_masks
from lungseg.predictions.image_files import orientation_of, read_image_and_masks
from lungseg.predictions.parts import read_part
from lungseg.predictions.ranking import doubt_key, questions
from lungseg.schema import USABLE

MAX_SIDE = 360  # px, the longest side of a drawn image
_TOLERANCE = 0.25  # px of the drawn image; tolerance of simplified outlines
_MEASURES = (
    ("cardiothoracic_ratio", "heart / thorax", ".2f"),
    ("right_lung_opaque_share", "right lung opaque", ".0%"),
    ("left_lung_opaque_share", "left lung opaque", ".0%"),
    ("right_left_ratio", "right / left lung", ".2f"),
)


@dataclass(frozen=True)
class Outline:
    """The outline of a mask as SVG path data in px of the drawn image, its class, and its colour as #rrggbb."""

    name: str
    colour: str
    path: str


@dataclass(frozen=True)
class Overlay:
    """One X-ray of the report.

    name: of the image's file. rank: flagged, worst, median, best, or the rank by doubt. image: data URI of a PNG, empty
    where `note` gives a reason. outlines: of the classes, or of each lung, without empty masks. references:
    outlines of the reference masks of other classes, such as that of both lungs, as one path. class_references: those
    of the predicted classes. measures: text for each measure that is known.
    """

    image_id: str
    dataset: str
    name: str
    rank: str
    dice: float | None
    doubt: float | None
    doubt_reason: str | None
    training: str
    image: str = ""
    width: int = 0
    height: int = 0
    outlines: tuple[Outline, ...] = ()
    references: str = ""
    class_references: tuple[Outline, ...] = ()
    note: str = ""
    flags: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()


def select_cases(rows: Sequence[Row], count: int) -> list[tuple[str, Row]]:
    """Select predicted images with their rank.

    First those whose flags question the image or its mask, at most half of `count`, most flags first. Of the others a
    third the worst by Dice, a third the median, a third the best. Only images unseen in training are selected where
    enough of them have a reference. Where too few images have a reference, the most doubtful ones without are added.
    """
    usable = [row for row in rows if row["status"] in USABLE]
    flagged = sorted((row for row in usable if questions(row)), key=doubt_key)[: (count + 1) // 2]
    predicted = [row for row in usable if row not in flagged]
    count -= len(flagged)
    ranked = sorted((row for row in predicted if row["dice"] is not None), key=_by_dice)
    unseen = [row for row in ranked if row["seen_in_training"] is False]
    selected = _thirds(unseen if len(unseen) >= count else ranked, count)
    others = sorted((row for row in predicted if row["dice"] is None), key=doubt_key)
    return [("flagged", row) for row in flagged] + selected + [("", row) for row in others[: count - len(selected)]]


def select_doubtful(rows: Sequence[Row], count: int) -> list[tuple[str, Row]]:
    """Select the most doubtful images that have a mask, with their rank from 1: flagged ones first, then by doubt."""
    predicted = [row for row in rows if row["status"] in USABLE]
    return [(str(rank), row) for rank, row in enumerate(sorted(predicted, key=doubt_key)[:count], 1)]


def draw_case(row: Row, rank: str, training: str) -> Overlay:
    """Read an image and its masks again and draw them; `note` reports a missing or changed file."""
    values = {name: row[name] for name in ("image_id", "dataset", "dice", "doubt", "doubt_reason")}
    name = storage.name_of(row["source_uri"]).rpartition("#")[2]  # of prepared data: the image id
    ids: Row = {**values, "name": name, "rank": rank, "training": training, "flags": tuple(row["flags"] or ())}
    ids["measures"] = describe_measures(row)
    try:
        orientation = orientation_of(row)
        image, references, note = read_image_and_masks(row)
        columns = read_part(row["part"]).select(["mask", "classes"]).slice(row["position"], 1).to_pylist()[0]
        masks = read_shown_masks({**row, **columns}, orientation)
    except InputError as error:
        return Overlay(**ids, note=str(error))
    height, width = other_shape((row["height"], row["width"]), orientation)
    if image.shape != (height, width):
        size, expected = f"{image.shape[0]}x{image.shape[1]}", f"{height}x{width}"
        return Overlay(**ids, note=f"the image is {size} px, expected {expected}: it changed after its prediction")
    small = _shrink(image)
    scale = MAX_SIDE / max(height, width)
    colours = colours_of(masks)

    def outline(kind: str, mask: U8) -> Outline:
        return Outline(kind.replace("_", " "), to_hex(colours[kind]), _outline(mask, scale))

    return Overlay(
        **ids,
        image="data:image/png;base64," + base64.b64encode(codecs.encode_image(small)).decode("ascii"),
        width=small.shape[1],
        height=small.shape[0],
        outlines=tuple(outline(kind, to_upright(mask, orientation)) for kind, mask in masks.items() if mask.any()),
        references="".join(_outline(mask, scale) for kind, mask in references.items() if kind not in masks),
        class_references=tuple(
            outline(kind, mask) for kind, mask in references.items() if kind in masks and mask.any()
        ),
        note=note,
    )


def describe_measures(row: Row) -> tuple[str, ...]:
    """Say in words what the columns that need several classes state about an image; null is left out."""
    return tuple(f"{words} {row[name]:{form}}" for name, words, form in _MEASURES if row.get(name) is not None)


def _by_dice(row: Row) -> tuple[float, str, str]:
    return row["dice"], row["dataset"], row["image_id"]


def _thirds(ranked: Sequence[Row], count: int) -> list[tuple[str, Row]]:
    count = min(count, len(ranked))
    worst = -(-count // 3)
    best = -(-(count - worst) // 2)
    middle = count - worst - best
    start = worst + (len(ranked) - count) // 2
    return [
        *(("worst", row) for row in ranked[:worst]),
        *(("median", row) for row in ranked[start : start + middle]),
        *(("best", row) for row in ranked[len(ranked) - best :]),
    ]


def _shrink(image: U8) -> U8:
    height, width = image.shape
    scale = MAX_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=interpolation)  # type: ignore[return-value]


def _outline(mask: U8, scale: float) -> str:
    """Trace the borders of a mask, holes included, as SVG path data; `scale` converts native px to drawn px."""
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, _TOLERANCE / scale, closed=True)[:, 0, :]
        # OpenCV coordinates are pixel centres, SVG coordinates are pixel corners.
        corners = [f"{(x + 0.5) * scale:.1f} {(y + 0.5) * scale:.1f}" for x, y in points.tolist()]
        paths.append(f"M{'L'.join(corners)}Z")
    return "".join(paths)
