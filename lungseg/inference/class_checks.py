"""Recompute the column `classes` of a row from its masks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lungseg.arrays import Row
from lungseg.imaging.coco_rle import decode_runs
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import postprocess
from lungseg.inference.comparison import compare


def class_masks(row: Row) -> dict[str, Runs]:
    """Return the mask of each class of a row as its pixels are stored; none for a model of the one class lung.

    Raises:
        InputError: a mask cannot be decoded.

    """
    return {one["class"]: decode_runs(one["mask"], row["height"], row["width"]) for one in row["classes"] or ()}


def expected_classes(
    masks: Mapping[str, Runs], references: Mapping[str, Runs], thresholds: Mapping[str, float]
) -> dict[str, Row]:
    """Return the values of each class that follow from its upright mask. references: of the annotated classes."""
    return {
        name: {
            "threshold": float(np.float32(thresholds[name])),
            "area_px": mask.area,
            "components": postprocess.count_components(mask),
            **compare(mask, references.get(name)),
        }
        for name, mask in masks.items()
    }


def check_names(row: Row, classes: Sequence[str]) -> list[str]:
    """Say whether a row has the classes of the plan, in its order; classes: none for the one class lung."""
    names = [one["class"] for one in row["classes"] or ()]
    if names == list(classes):
        return []
    return [f"classes are {', '.join(names) or 'none'}, but the plan has {', '.join(classes) or 'none'}"]


def check_classes(row: Row, expected: Mapping[str, Row], is_equal: Callable[[Any, Any], bool]) -> list[str]:
    """List the values of the column `classes` that differ from the expected ones."""
    return [
        f"{name} of {one['class']} is {one[name]}, but the mask gives {value}"
        for one in row["classes"] or ()
        for name, value in expected[one["class"]].items()
        if not is_equal(one[name], value)
    ]
