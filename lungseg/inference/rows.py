"""From what was opened and predicted to a row of predictions: restore, post-process, measure, compare, encode."""

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lungseg.config import PostprocessSettings
from lungseg.imaging import codecs
from lungseg.imaging.geometry import restore
from lungseg.inference import mask_shape, postprocess
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.ingest.reason_codes import was_repaired
from lungseg.metrics import segmentation
from lungseg.schema import PREDICTIONS, Record

U8 = NDArray[np.uint8]
Row = dict[str, Any]

COMPARED = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")


def make_row(opened: OpenedImage, predicted: Prediction | None, made: Row, settings: PostprocessSettings) -> Row:
    """Make one row of PREDICTIONS.

    made: what all rows have in common: threshold, and model, the digest of the weights.
    """
    began = time.perf_counter()
    empty = dict.fromkeys(PREDICTIONS.names)
    row = {**empty, **_ids(opened.record), **made, **_reasons(opened.record)}
    if predicted is None or opened.geometry is None:
        return {**row, "seconds": opened.seconds}
    geometry, threshold = opened.geometry, made["threshold"]
    raw = (restore(predicted.probability, geometry) >= threshold).astype(np.uint8)
    mask = postprocess.clean(raw, settings)
    reference = opened.reference and codecs.decode_rle(opened.reference, *raw.shape)
    return {
        **row,
        "status": _status(opened.record),
        "mask": codecs.encode_rle(mask),
        "geometry": json.dumps(asdict(geometry)),
        "components": postprocess.count_components(mask),
        "components_before": postprocess.count_components(raw),
        "removed_px": int(np.count_nonzero(raw > mask)),
        "added_px": int(np.count_nonzero(mask > raw)),
        **mask_shape.describe(mask),
        **mask_shape.confidence(predicted.probability[geometry.content()], threshold),
        **compare(mask, reference if isinstance(reference, np.ndarray) else None),
        "seen_in_training": predicted.seen_in_training,
        "models": predicted.models,
        "seconds": opened.seconds + predicted.seconds + time.perf_counter() - began,
    }


def compare(mask: U8, reference: U8 | None) -> Row:
    """Compare a mask with its reference, both u8[H,W] in {0,1} at native size: COMPARED; None without one."""
    if reference is None:
        return dict.fromkeys(COMPARED)
    counts = segmentation.count_pixels(mask, reference)
    hd95, assd = segmentation.surface_distances(mask, reference)
    values = (segmentation.iou(counts), segmentation.dice(counts), segmentation.pixel_accuracy(counts), hd95, assd)
    return dict(zip(COMPARED, values, strict=True))


def _status(record: Record) -> str:
    """Say what became of an image that was predicted: a reference mask that cannot be used does not keep it from it."""
    if record.usable:
        return record.status
    return "repaired" if was_repaired(record.codes) else "ok"


def _reasons(record: Record) -> Row:
    return {"status": record.status, "codes": list(record.codes), "message": record.message}


def _ids(record: Record) -> Row:
    names = ("image_id", "dataset", "patient_id", "height", "width")
    values = {name: getattr(record, name) for name in names}
    masks = [uri for uri, kind in zip(record.mask_uris, record.mask_classes, strict=True) if kind == "lung"]
    return {**values, "source_uri": record.image_uri, "mask_uris": masks}
