"""Write predictions as a COCO object detection file with the categories right lung and left lung."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.imaging import codecs

_CATEGORIES = {"right": 1, "left": 2}
_IMAGE_NAMES = ("image_id", "dataset", "source_uri", "height", "width", "doubt")


def describe_lungs(row: Row, lungs: Mapping[str, U8]) -> Row:
    """Return what the COCO file needs of a row. lungs: u8[H,W] in {0,1} by side, as stored."""
    described = {
        side: {
            "mask": codecs.encode_rle(lung),
            "area_px": int(np.count_nonzero(lung)),
            "bbox": [int(value) for value in cv2.boundingRect(lung)],
        }
        for side, lung in lungs.items()
        if lung.any()
    }
    return {**{name: row[name] for name in _IMAGE_NAMES}, "lungs": described}


def to_coco(rows: list[Row], folder: str) -> dict[str, Any]:
    """Convert rows of `describe_lungs` to a COCO file; an image with an empty mask has no annotation.

    score: the overlap (Dice) with the truth that the model expects of both lungs together, 1 minus the doubt.
    """
    images: list[Row] = []
    annotations: list[Row] = []
    for number, row in enumerate(rows, start=1):
        name = f"{row['dataset']}/{row['image_id']}"
        size = {"height": row["height"], "width": row["width"]}
        images.append({"id": number, "file_name": row["source_uri"], "lungseg_id": name, **size})
        for side, lung in row["lungs"].items():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": _CATEGORIES[side],
                    "segmentation": {"size": [row["height"], row["width"]], "counts": lung["mask"]},
                    "area": lung["area_px"],
                    "bbox": lung["bbox"],
                    "iscrowd": 0,
                    "score": None if row["doubt"] is None else 1 - row["doubt"],
                }
            )
    categories = [
        {"id": number, "name": f"{side} lung", "supercategory": "lung"} for side, number in _CATEGORIES.items()
    ]
    return {
        "info": {"description": f"lungs predicted by lungseg, from {storage.name_of(folder)}"},
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }
