"""Per-image metrics during training, threshold selection and testing; and their means."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import U8, Row
from lungseg.imaging.geometry import restore
from lungseg.metrics import segmentation
from lungseg.schema import Counts, Sample
from lungseg.training.epoch_loop import Measure


def measure_at_prepared_size(threshold: float) -> Measure:
    """Return a fast measure that compares prepared masks inside the image, without its padding."""

    def measure(sample: Sample, probabilities: NDArray[np.float32]) -> Row:
        area = sample.geometry.content()
        counts = segmentation.count_pixels((probabilities[area] >= threshold).astype(np.uint8), _mask(sample)[area])
        return {**_ids(sample), **_metrics(counts)}

    return measure


def measure_at_native_size(threshold: float) -> Measure:
    """Return a measure that restores both masks to the original size and adds surface distances."""

    def measure(sample: Sample, probabilities: NDArray[np.float32]) -> Row:
        predicted = _restored(probabilities, sample, threshold)
        reference = _restored(_mask(sample).astype(np.float32), sample, 0.5)
        counts = segmentation.count_pixels(predicted, reference)
        hd95, assd = segmentation.surface_distances(predicted, reference)
        more = {"sensitivity": segmentation.sensitivity(counts), "precision": segmentation.precision(counts)}
        return {**_ids(sample), **_metrics(counts), **more, "hd95_px": hd95, "assd_px": assd}

    return measure


def count_at_thresholds(sample: Sample, probabilities: NDArray[np.float32]) -> Row:
    """Count pixels at prepared size for every threshold of segmentation.THRESHOLDS."""
    area = sample.geometry.content()
    counts = segmentation.threshold_counts(probabilities[area], _mask(sample)[area])
    return {**_ids(sample), "counts": counts}


def best_threshold(rows: Sequence[Row]) -> float:
    """Return the threshold with the best mean Dice over the rows of `count_at_thresholds`."""
    return segmentation.best_threshold(np.stack([row["counts"] for row in rows]))[0]


def mean_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return per-image means of dice, iou and pixel_accuracy."""
    return {name: segmentation.mean([row[name] for row in rows]) for name in ("dice", "iou", "pixel_accuracy")}


def mean_metrics_by_dataset(rows: Sequence[Row]) -> list[Row]:
    """Return the number of images and mean metrics of each role and dataset."""
    pairs = sorted({(row["role"], row["dataset"]) for row in rows})
    return [
        {"role": role, "dataset": dataset, "images": len(subset), **mean_metrics(subset)}
        for role, dataset in pairs
        for subset in [[row for row in rows if (row["role"], row["dataset"]) == (role, dataset)]]
    ]


def _mask(sample: Sample) -> U8:
    assert sample.mask is not None, "training refuses data without masks before it starts"
    return sample.mask


def _restored(square: NDArray[np.float32], sample: Sample, threshold: float) -> U8:
    return (restore(square, sample.geometry) >= threshold).astype(np.uint8)


def _ids(sample: Sample) -> Row:
    return {"image_id": sample.image_id, "dataset": sample.dataset, "patient_id": sample.patient_id}


def _metrics(counts: Counts) -> Row:
    return {
        **{name: getattr(counts, name) for name in ("tp", "fp", "fn", "tn")},
        "dice": segmentation.dice(counts),
        "iou": segmentation.iou(counts),
        "pixel_accuracy": segmentation.pixel_accuracy(counts),
    }
