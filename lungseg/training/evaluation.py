"""What is measured of one image in training, in choosing a threshold and in testing; and what rows come to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lungseg.imaging.geometry import restore
from lungseg.metrics import segmentation
from lungseg.schema import Counts, Sample
from lungseg.training.epoch_loop import Measure

Row = dict[str, Any]
U8 = NDArray[np.uint8]


def measure_at_prepared_size(threshold: float) -> Measure:
    """Compare masks as prepared, over the picture without its padding: fast, for the epochs."""

    def measure(sample: Sample, probabilities: NDArray[np.float32]) -> Row:
        area = sample.geometry.content()
        counts = segmentation.count_pixels((probabilities[area] >= threshold).astype(np.uint8), _truth(sample)[area])
        return {**_ids(sample), **_figures(counts)}

    return measure


def measure_at_native_size(threshold: float) -> Measure:
    """Compare masks at the size of the original, to which both are brought back; with their borders' distances."""

    def measure(sample: Sample, probabilities: NDArray[np.float32]) -> Row:
        predicted = _restored(probabilities, sample, threshold)
        truth = _restored(_truth(sample).astype(np.float32), sample, 0.5)
        counts = segmentation.count_pixels(predicted, truth)
        hd95, assd = segmentation.surface_distances(predicted, truth)
        more = {"sensitivity": segmentation.sensitivity(counts), "precision": segmentation.precision(counts)}
        return {**_ids(sample), **_figures(counts), **more, "hd95_px": hd95, "assd_px": assd}

    return measure


def count_at_thresholds(sample: Sample, probabilities: NDArray[np.float32]) -> Row:
    """Count pixels as prepared at every threshold of metrics.THRESHOLDS."""
    area = sample.geometry.content()
    counts = segmentation.threshold_counts(probabilities[area], _truth(sample)[area])
    return {**_ids(sample), "counts": counts}


def best_threshold(rows: Sequence[Row]) -> float:
    """Choose the threshold of metrics.THRESHOLDS with the best mean Dice over `over_thresholds`' rows."""
    return segmentation.best_threshold(np.stack([row["counts"] for row in rows]))[0]


def mean_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Per-image means of dice, iou and pixel accuracy."""
    return {name: segmentation.mean([row[name] for row in rows]) for name in ("dice", "iou", "pixel_accuracy")}


def mean_metrics_by_dataset(rows: Sequence[Row]) -> list[Row]:
    """Average the rows of each role and data set."""
    pairs = sorted({(row["role"], row["dataset"]) for row in rows})
    return [
        {"role": role, "dataset": dataset, "images": len(chosen), **mean_metrics(chosen)}
        for role, dataset in pairs
        for chosen in [[row for row in rows if (row["role"], row["dataset"]) == (role, dataset)]]
    ]


def _truth(sample: Sample) -> U8:
    assert sample.mask is not None, "training refuses data without masks before it starts"
    return sample.mask


def _restored(square: NDArray[np.float32], sample: Sample, threshold: float) -> U8:
    return (restore(square, sample.geometry) >= threshold).astype(np.uint8)


def _ids(sample: Sample) -> Row:
    return {"image_id": sample.image_id, "dataset": sample.dataset, "patient_id": sample.patient_id}


def _figures(counts: Counts) -> Row:
    return {
        **{name: getattr(counts, name) for name in ("tp", "fp", "fn", "tn")},
        "dice": segmentation.dice(counts),
        "iou": segmentation.iou(counts),
        "pixel_accuracy": segmentation.pixel_accuracy(counts),
    }
