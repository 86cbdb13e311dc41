"""Select cases of the predictions and draw them with the outlines of their masks."""

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.dataset import sample_reader
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import read_geometry, restore
from lungseg.imaging.intensity import normalise
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.orientation import UPRIGHT, other_shape, to_upright
from lungseg.ingest import record_checks
from lungseg.predictions.parts import read_part
from lungseg.predictions.ranking import doubt_key, questions
from lungseg.schema import USABLE, Record, Sample
from lungseg.storage.json_files import parse_json
from lungseg.storage.table_formats import INDEX_TABLE

MAX_SIDE = 360  # px, the longest side of a drawn image
_TOLERANCE = 0.25  # px of the drawn image; tolerance of simplified outlines


@dataclass(frozen=True)
class Overlay:
    """One X-ray of the report.

    name: of the image's file. rank: flagged, worst, median, best, or the rank by doubt. image: data URI of a PNG, empty
    where `note` gives a reason. right, left, reference: outlines as SVG path data in px of the image, empty for
    an empty or missing mask.
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
    right: str = ""
    left: str = ""
    reference: str = ""
    note: str = ""
    flags: tuple[str, ...] = ()


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
    ids: Row = {**values, "name": name, "rank": rank, "flags": tuple(row["flags"] or ())}
    try:
        orientation = orientation_of(row)
        image, reference, note = read_image_and_mask(row)
        counts = read_part(row["part"]).column("mask")[row["position"]].as_py()
        mask = codecs.decode_rle(counts, row["height"], row["width"])
    except InputError as error:
        return Overlay(**ids, training=training, note=str(error))
    height, width = other_shape((row["height"], row["width"]), orientation)
    if image.shape != (height, width):
        size, expected = f"{image.shape[0]}x{image.shape[1]}", f"{height}x{width}"
        return Overlay(
            **ids,
            training=training,
            note=f"the image is {size} px, expected {expected}: it changed after its prediction",
        )
    small = _shrink(image)
    right, left = split_sides(to_upright(mask, orientation))
    scale = MAX_SIDE / max(height, width)
    return Overlay(
        **ids,
        training=training,
        image="data:image/png;base64," + base64.b64encode(codecs.encode_image(small)).decode("ascii"),
        width=small.shape[1],
        height=small.shape[0],
        right=_outline(right, scale),
        left=_outline(left, scale),
        reference="" if reference is None else _outline(reference, scale),
        note=note,
    )


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


def orientation_of(row: Row) -> int:
    """Return the orientation of the stored pixels of a predicted image, in which its mask is stored.

    Raises:
        InputError: the row's geometry is damaged.

    """
    text = row.get("geometry")
    return read_geometry(parse_json(text.encode(), "the geometry")).orientation if text else UPRIGHT


def read_image_and_mask(row: Row) -> tuple[U8, U8 | None, str]:
    """Read an upright image u8[H,W], its reference mask u8[H,W] or None, and a note about them.

    Raises:
        InputError: the image is missing or cannot be read.

    """
    tar, separator, image_id = row["source_uri"].rpartition("#")
    if separator and tar.endswith(".tar"):
        return _from_sample(_read_sample(tar, image_id))
    if not storage.exists(row["source_uri"]):
        raise InputError(f"{row['source_uri']} is missing")
    has_dice = row["dice"] is not None
    masks = tuple(row["mask_uris"] or ()) if has_dice else ()
    values = tuple(row["mask_values"] or ()) if has_dice else ()
    ids = (row["image_id"], row["dataset"], row["source_uri"])
    record = Record(*ids, masks, ("lung",) * len(masks), mask_values=values)
    # With the same corrections as for the prediction: inverted where bones are dark, the mask repaired.
    checked, image, references = record_checks.open_record(record)
    reference = None if references is None else references[0]
    if image is None:  # the file changed and is now rejected by the image checks
        image = codecs.decode(storage.read_bytes(row["source_uri"]), storage.name_of(row["source_uri"]))
    note = f"reference mask: {checked.message}" if has_dice and reference is None else ""
    return normalise(image, "none"), reference, note


def _read_sample(tar: str, image_id: str) -> Sample:
    if not storage.exists(tar):
        raise InputError(f"{tar} is missing")
    shard = storage.name_of(tar).removesuffix(".tar")
    row = _index(storage.join(storage.parent_of(tar), "index.parquet")).get((shard, image_id))
    if row is None:
        raise InputError(f"{tar}: {image_id} is no longer in the index: the dataset was prepared again")
    return sample_reader.read_sample(tar, row)


@functools.lru_cache(4)
def _index(path: str) -> dict[tuple[str, str], Row]:
    """Read an index and cache it: an export reads every sample of it."""
    return {(row["shard"], row["image_id"]): row for row in storage.read_table(path, expected=INDEX_TABLE).to_pylist()}


def _from_sample(sample: Sample) -> tuple[U8, U8 | None, str]:
    """Restore a prepared image and its mask to native size."""
    image = np.rint(restore(sample.image.astype(np.float32), sample.geometry)).astype(np.uint8)
    note = "grey values as prepared"
    if sample.masks is None:
        return image, None, note
    reference = restore(sample.masks[0].astype(np.float32), sample.geometry) >= 0.5
    return image, reference.astype(np.uint8), note


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
