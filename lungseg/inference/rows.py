"""Create the row of an image: restore the native size, post-process, measure, compare, encode."""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict

from lungseg.arrays import F32, U8, Row
from lungseg.config import PostprocessSettings
from lungseg.config.class_names import LUNG, ONE_CLASS, annotated_by
from lungseg.errors import InputError
from lungseg.imaging.coco_rle import encode_runs
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import doubt, mask_flags, mask_shape, postprocess
from lungseg.inference.class_masks import (
    ClassMask,
    derive,
    describe_classes,
    join_lungs,
    lung_threshold,
    make_class_masks,
)
from lungseg.inference.comparison import compare
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.ingest.reason_codes import was_repaired
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import Geometry, Record

Thresholds = Mapping[str, float]
"""Threshold of each class of a model, in the order of its classes."""


def make_row(
    opened: OpenedImage,
    prediction: Prediction | None,
    shared: Row,
    settings: PostprocessSettings,
    thresholds: Thresholds | None = None,
) -> Row:
    """Create one row of PREDICTIONS, as `make_row_and_mask`."""
    return make_row_and_mask(opened, prediction, shared, settings, thresholds)[0]


def make_row_and_mask(
    opened: OpenedImage,
    prediction: Prediction | None,
    shared: Row,
    settings: PostprocessSettings,
    thresholds: Thresholds | None = None,
) -> tuple[Row, Runs | None]:
    """Create one row of PREDICTIONS and the upright mask of the lungs, None where no lungs were predicted.

    Everything is computed on the upright picture; the row's masks and their places are those of the stored pixels.
    shared: values of all rows: `threshold`, `model_name` and `model`. thresholds: None for the one class lung.
    """
    began = time.perf_counter()
    thresholds = thresholds or {LUNG: shared["threshold"]}
    empty = dict.fromkeys(PREDICTIONS.names)
    row = {**empty, **_ids(opened.record, thresholds), **shared, **_reasons(opened.record)}
    geometry = opened.geometry
    if prediction is None or geometry is None:
        return {**row, "seconds": opened.seconds}, None
    masks = make_class_masks(opened, geometry, prediction, thresholds, settings)
    lungs = join_lungs(masks, opened)
    derived = derive({name: one.mask for name, one in masks.items()})
    flags = [*row["flags"], *derived.flags]
    measured = {
        **row,
        "status": _status(opened.record),
        "flags": flags,
        "geometry": json.dumps(asdict(geometry)),
        **({} if lungs is None else _describe_lungs(lungs, geometry, opened.record.spacing_mm, flags)),
        "classes": describe_classes(masks, thresholds, geometry.orientation),
        **derived.columns,
        "seen_in_training": prediction.seen_in_training,
        "models": prediction.models,
        "seconds": opened.seconds + prediction.seconds + time.perf_counter() - began,
    }
    return measured, None if lungs is None else lungs.mask


def shared_values(thresholds: Thresholds, model_name: str, model: str) -> Row:
    """Return the values of all rows of a model, or of several."""
    return {"threshold": lung_threshold(thresholds), "model_name": model_name, "model": model}


def planned_thresholds(thresholds: Thresholds) -> Row:
    """Return the thresholds as plan.json states them: `threshold` for the one class lung, else `thresholds`."""
    return {"threshold": thresholds[LUNG]} if tuple(thresholds) == ONE_CLASS else {"thresholds": dict(thresholds)}


def stored_thresholds(plan: Row) -> dict[str, float]:
    """Return the thresholds of a plan.json.

    Raises:
        InputError: it has none.

    """
    values = plan.get("thresholds") or {LUNG: plan.get("threshold")}
    if None in values.values():
        raise InputError("plan.json has no threshold: the file is damaged; predict into another --out")
    return {name: float(value) for name, value in values.items()}


def _describe_lungs(lungs: ClassMask, geometry: Geometry, spacing_mm: float | None, flags: list[str]) -> Row:
    """Measure the lungs, which most columns of a row describe. flags: of the image."""
    stored = mask_shape.as_stored(lungs.mask, geometry.orientation)
    confidence = mask_shape.confidence(lungs.probability, lungs.reached)
    flags = [*flags, *mask_flags.find_flags(lungs.mask, confidence["mean_probability"], lungs.sides)]
    common = lungs.raw.count_common(lungs.mask)
    sides = lungs.sides and (lungs.sides[0].area, lungs.sides[1].area)
    return {
        "flags": flags,
        "mask": encode_runs(stored),
        "components": postprocess.count_components(lungs.mask),
        "components_before": postprocess.count_components(lungs.raw),
        "removed_px": lungs.raw.area - common,
        "added_px": lungs.mask.area - common,
        **mask_shape.describe(lungs.mask, stored, spacing_mm, sides),
        **confidence,
        **_doubt(lungs.probability, lungs.reached, flags),
        **compare(lungs.mask, lungs.reference),
    }


def _doubt(probability: F32, mask: U8, flags: list[str]) -> Row:
    return {
        "doubt": doubt.measure_doubt(probability, mask),
        "doubt_reason": doubt.describe_doubt(probability, mask, flags),
    }


def _status(record: Record) -> str:
    """Return the status of a predicted image. A reference mask that cannot be used does not make it rejected."""
    if record.usable:
        return record.status
    return "repaired" if was_repaired(record.codes) else "ok"


def _reasons(record: Record) -> Row:
    return {
        "status": record.status,
        "codes": list(record.codes),
        "message": record.message,
        "flags": list(record.flags),
    }


def _ids(record: Record, classes: Collection[str]) -> Row:
    """Return the columns about the image and the files of its reference masks of these classes."""
    names = ("image_id", "dataset", "patient_id", "height", "width")
    values = {name: getattr(record, name) for name in names}
    values_of = record.mask_values or ("",) * len(record.mask_uris)
    files = zip(record.mask_uris, record.mask_classes, values_of, strict=True)
    masks = [file for file in files if annotated_by((file[1],), tuple(classes))]
    kinds = [kind for _, kind, _ in masks]
    return {
        **values,
        "source_uri": record.image_uri,
        "mask_uris": [uri for uri, _, _ in masks],
        "mask_values": [levels for _, _, levels in masks] if record.mask_values else [],
        "mask_classes": None if {*kinds} <= {LUNG} else kinds,
    }
