"""Write predictions as a COCO object detection file with a category for each class, or for each lung."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config.class_names import HEART, LEFT_LUNG, LUNG, LUNGS, OPACITY, RIGHT_LUNG
from lungseg.imaging import codecs

_NUMBERS = {RIGHT_LUNG: 1, LEFT_LUNG: 2, HEART: 3, OPACITY: 4, LUNG: 5}
_FIRST_OTHER = 101  # number of the first class that is not among these
_IMAGE_NAMES = ("image_id", "dataset", "source_uri", "height", "width", "doubt")


def describe_masks(row: Row, masks: Mapping[str, U8]) -> Row:
    """Return what the COCO file needs of a row. masks: u8[H,W] in {0,1} by class, as stored."""
    probabilities = {entry["class"]: entry["mean_probability"] for entry in row.get("classes") or ()}
    described = {
        name: {
            "mask": codecs.encode_rle(mask),
            "area_px": int(np.count_nonzero(mask)),
            "bbox": [int(value) for value in cv2.boundingRect(mask)],
            "score": _score(row) if name in LUNGS else probabilities.get(name),
        }
        for name, mask in masks.items()
        if mask.any()
    }
    return {**{name: row[name] for name in _IMAGE_NAMES}, "classes": list(masks), "masks": described}


def to_coco(rows: list[Row], folder: str) -> dict[str, Any]:
    """Convert rows of `describe_masks` to a COCO file; an empty mask has no annotation.

    score: of a lung, the overlap (Dice) with the truth that the model expects of both lungs together, 1 minus the
    doubt; of another class, the mean probability of its pixels.
    """
    numbers = _category_numbers(rows)
    images: list[Row] = []
    annotations: list[Row] = []
    for number, row in enumerate(rows, start=1):
        name = f"{row['dataset']}/{row['image_id']}"
        size = {"height": row["height"], "width": row["width"]}
        images.append({"id": number, "file_name": row["source_uri"], "lungseg_id": name, **size})
        for kind, mask in row["masks"].items():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[kind],
                    "segmentation": {"size": [row["height"], row["width"]], "counts": mask["mask"]},
                    "area": mask["area_px"],
                    "bbox": mask["bbox"],
                    "iscrowd": 0,
                    "score": mask["score"],
                }
            )
    categories = [
        {"id": number, "name": kind.replace("_", " "), "supercategory": "lung" if kind in LUNGS else "chest"}
        for kind, number in numbers.items()
    ]
    content = "lungs" if {*numbers} <= {*LUNGS} else "structures"
    return {
        "info": {"description": f"{content} predicted by lungseg, from {storage.name_of(folder)}"},
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }


def _score(row: Row) -> float | None:
    return None if row["doubt"] is None else 1 - row["doubt"]


def _category_numbers(rows: list[Row]) -> dict[str, int]:
    """Return the number of each class, lowest first; both lungs where there is no row. Unknown ones are in order."""
    names = {kind for row in rows for kind in row["classes"]} or {RIGHT_LUNG, LEFT_LUNG}
    others = {kind: number for number, kind in enumerate(sorted(names - _NUMBERS.keys()), _FIRST_OTHER)}
    return {kind: number for kind, number in (_NUMBERS | others).items() if kind in names}
