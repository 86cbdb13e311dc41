"""Create the row of an image: restore the native size, post-process, measure, compare, encode."""

import json
import time
from dataclasses import asdict

import numpy as np

from lungseg.arrays import F32, U8, Row
from lungseg.config import PostprocessSettings
from lungseg.imaging import codecs
from lungseg.imaging.geometry import restore
from lungseg.imaging.orientation import to_stored
from lungseg.inference import doubt, mask_flags, mask_shape, postprocess
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.ingest.reason_codes import was_repaired
from lungseg.metrics import segmentation
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import Record

COMPARED = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")


def make_row(opened: OpenedImage, prediction: Prediction | None, shared: Row, settings: PostprocessSettings) -> Row:
    """Create one row of PREDICTIONS. shared: values of all rows: `threshold`, `model_name` and `model`."""
    return make_row_and_mask(opened, prediction, shared, settings)[0]


def make_row_and_mask(
    opened: OpenedImage, prediction: Prediction | None, shared: Row, settings: PostprocessSettings
) -> tuple[Row, U8 | None]:
    """Create one row of PREDICTIONS and the upright mask u8[H,W] in {0,1}, None where nothing was predicted.

    Everything is computed on the upright picture; the row's mask and its places are those of the stored pixels.
    """
    began = time.perf_counter()
    empty = dict.fromkeys(PREDICTIONS.names)
    row = {**empty, **_ids(opened.record), **shared, **_reasons(opened.record)}
    if prediction is None or opened.geometry is None:
        return {**row, "seconds": opened.seconds}, None
    geometry, threshold = opened.geometry, shared["threshold"]
    raw = (restore(prediction.probability, geometry) >= threshold).astype(np.uint8)
    mask = postprocess.clean(raw, settings)
    reference = opened.reference and codecs.decode_rle(opened.reference, *raw.shape)
    shown = prediction.probability[geometry.content()]
    confidence = mask_shape.confidence(shown, threshold)
    flags = [*row["flags"], *mask_flags.find_flags(mask, confidence["mean_probability"])]
    measured = {
        **row,
        "status": _status(opened.record),
        "flags": flags,
        "mask": codecs.encode_rle(to_stored(mask, geometry.orientation)),
        "geometry": json.dumps(asdict(geometry)),
        "components": postprocess.count_components(mask),
        "components_before": postprocess.count_components(raw),
        "removed_px": int(np.count_nonzero(raw > mask)),
        "added_px": int(np.count_nonzero(mask > raw)),
        **mask_shape.describe(mask, geometry.orientation, opened.record.spacing_mm),
        **confidence,
        **_doubt(shown, threshold, flags),
        **compare(mask, reference if isinstance(reference, np.ndarray) else None),
        "seen_in_training": prediction.seen_in_training,
        "models": prediction.models,
        "seconds": opened.seconds + prediction.seconds + time.perf_counter() - began,
    }
    return measured, mask


def _doubt(probability: F32, threshold: float, flags: list[str]) -> Row:
    mask = (probability >= threshold).astype(np.uint8)
    return {
        "doubt": doubt.measure_doubt(probability, mask),
        "doubt_reason": doubt.describe_doubt(probability, mask, flags),
    }


def compare(mask: U8, reference: U8 | None) -> Row:
    """Return the metrics in COMPARED of a mask and its reference, u8[H,W] in {0,1}; None without a reference."""
    if reference is None:
        return dict.fromkeys(COMPARED)
    counts = segmentation.count_pixels(mask, reference)
    hd95, assd = segmentation.surface_distances(mask, reference)
    values = (segmentation.iou(counts), segmentation.dice(counts), segmentation.pixel_accuracy(counts), hd95, assd)
    return dict(zip(COMPARED, values, strict=True))


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


def _ids(record: Record) -> Row:
    names = ("image_id", "dataset", "patient_id", "height", "width")
    values = {name: getattr(record, name) for name in names}
    values_of = record.mask_values or ("",) * len(record.mask_uris)
    masks = zip(record.mask_uris, record.mask_classes, values_of, strict=True)
    lungs = [(uri, levels) for uri, kind, levels in masks if kind == "lung"]
    return {
        **values,
        "source_uri": record.image_uri,
        "mask_uris": [uri for uri, _ in lungs],
        "mask_values": [levels for _, levels in lungs] if record.mask_values else [],
    }
