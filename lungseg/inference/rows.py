"""Create the row of an image: restore the native size, post-process, measure, compare, encode."""

import json
import time
from dataclasses import asdict

import numpy as np

from lungseg.arrays import F32, Row
from lungseg.config import PostprocessSettings
from lungseg.imaging.coco_rle import decode_runs, encode_runs
from lungseg.imaging.restored_runs import restore_runs
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import crf, doubt, mask_flags, mask_shape, postprocess
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.ingest.reason_codes import was_repaired
from lungseg.metrics import segmentation
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import Counts, Record

COMPARED = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")


def make_row(opened: OpenedImage, prediction: Prediction | None, shared: Row, settings: PostprocessSettings) -> Row:
    """Create one row of PREDICTIONS. shared: values of all rows: `threshold`, `model_name` and `model`."""
    return make_row_and_mask(opened, prediction, shared, settings)[0]


def make_row_and_mask(
    opened: OpenedImage, prediction: Prediction | None, shared: Row, settings: PostprocessSettings
) -> tuple[Row, Runs | None]:
    """Create one row of PREDICTIONS and the upright mask, None where nothing was predicted.

    Everything is computed on the upright picture; the row's mask and its places are those of the stored pixels.
    """
    began = time.perf_counter()
    empty = dict.fromkeys(PREDICTIONS.names)
    row = {**empty, **_ids(opened.record), **shared, **_reasons(opened.record)}
    if prediction is None or opened.geometry is None:
        return {**row, "seconds": opened.seconds}, None
    geometry, threshold = opened.geometry, shared["threshold"]
    raw = restore_runs(_refined(opened, prediction, threshold, settings), geometry, threshold)
    mask = postprocess.clean(raw, settings)
    stored = mask_shape.as_stored(mask, geometry.orientation)
    reference = decode_runs(opened.reference, *raw.shape) if opened.reference else None
    shown = prediction.probability[geometry.content()]
    confidence = mask_shape.confidence(shown, threshold)
    flags = [*row["flags"], *mask_flags.find_flags(mask, confidence["mean_probability"])]
    common = raw.count_common(mask)
    measured = {
        **row,
        "status": _status(opened.record),
        "flags": flags,
        "mask": encode_runs(stored),
        "geometry": json.dumps(asdict(geometry)),
        "components": postprocess.count_components(mask),
        "components_before": postprocess.count_components(raw),
        "removed_px": raw.area - common,
        "added_px": mask.area - common,
        **mask_shape.describe(mask, stored, opened.record.spacing_mm),
        **confidence,
        **_doubt(shown, threshold, flags),
        **compare(mask, reference),
        "seen_in_training": prediction.seen_in_training,
        "models": prediction.models,
        "seconds": opened.seconds + prediction.seconds + time.perf_counter() - began,
    }
    return measured, mask


def _refined(opened: OpenedImage, prediction: Prediction, threshold: float, settings: PostprocessSettings) -> F32:
    """Return the probabilities f32[S,S] from which the mask is made. The confidence and the doubt are the model's."""
    if not settings.crf or opened.square is None or opened.geometry is None:
        return prediction.probability
    content, refined = opened.geometry.content(), prediction.probability.copy()
    refined[content] = crf.refine(prediction.probability[content], opened.square[content], threshold)
    return refined


def _doubt(probability: F32, threshold: float, flags: list[str]) -> Row:
    mask = (probability >= threshold).astype(np.uint8)
    return {
        "doubt": doubt.measure_doubt(probability, mask),
        "doubt_reason": doubt.describe_doubt(probability, mask, flags),
    }


def compare(mask: Runs, reference: Runs | None) -> Row:
    """Return the metrics in COMPARED of a mask and its reference; None without a reference."""
    if reference is None:
        return dict.fromkeys(COMPARED)
    tp = mask.count_common(reference)
    fp, fn = mask.area - tp, reference.area - tp
    counts = Counts(tp, fp, fn, mask.shape[0] * mask.shape[1] - tp - fp - fn)
    hd95, assd = segmentation.surface_distances(mask.to_mask(), reference.to_mask())
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
