"""Metrics of each image and class during training, threshold selection and testing; and their means."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import U8, Row
from lungseg.imaging.geometry import restore
from lungseg.metrics import segmentation
from lungseg.schema import Counts, Sample, is_annotated
from lungseg.training.epoch_loop import Measure

Thresholds = Mapping[str, float]
"""Threshold by class, in the order of the masks of a sample."""

_MEANS = ("dice", "iou", "pixel_accuracy")


def measure_at_prepared_size(thresholds: Thresholds) -> Measure:
    """Return a fast measure that compares prepared masks inside the image, without its padding."""

    def measure(sample: Sample, name: str, probabilities: NDArray[np.float32], mask: U8) -> Row:
        area = sample.geometry.content()
        counts = segmentation.count_pixels((probabilities[area] >= thresholds[name]).astype(np.uint8), mask[area])
        return _metrics(counts)

    return _for_each_class(list(thresholds), measure)


def measure_at_native_size(thresholds: Thresholds) -> Measure:
    """Return a measure that restores both masks to the original size and adds surface distances."""

    def measure(sample: Sample, name: str, probabilities: NDArray[np.float32], mask: U8) -> Row:
        predicted = _restored(probabilities, sample, thresholds[name])
        reference = _restored(mask.astype(np.float32), sample, 0.5)
        counts = segmentation.count_pixels(predicted, reference)
        hd95, assd = segmentation.surface_distances(predicted, reference)
        more = {"sensitivity": segmentation.sensitivity(counts), "precision": segmentation.precision(counts)}
        return {**_metrics(counts), **more, "hd95_px": hd95, "assd_px": assd}

    return _for_each_class(list(thresholds), measure)


def count_at_thresholds(classes: Sequence[str]) -> Measure:
    """Return a measure that counts pixels at prepared size for every threshold of segmentation.THRESHOLDS."""

    def measure(sample: Sample, _name: str, probabilities: NDArray[np.float32], mask: U8) -> Row:
        area = sample.geometry.content()
        return {"counts": segmentation.threshold_counts(probabilities[area], mask[area])}

    return _for_each_class(classes, measure)


def best_thresholds(rows: Sequence[Row], fallback: Thresholds) -> dict[str, float]:
    """Return the threshold of each class with the best mean Dice over the rows of `count_at_thresholds`.

    fallback: for classes that no row has.
    """
    counts = {name: [row["counts"] for row in rows if row["class"] == name] for name in fallback}
    return {
        name: segmentation.best_threshold(np.stack(counts[name]))[0] if counts[name] else threshold
        for name, threshold in fallback.items()
    }


def mean_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return means of dice, iou and pixel_accuracy: over the images of each class, then over the classes.

    With several classes also the Dice of each, as dice_right_lung.
    """
    names = dict.fromkeys(row["class"] for row in rows)
    classes = {name: _means([row for row in rows if row["class"] == name]) for name in names}
    if len(classes) == 1:
        return next(iter(classes.values()))
    means = {name: segmentation.mean([values[name] for values in classes.values()]) for name in _MEANS}
    return {**means, **{f"dice_{name}": values["dice"] for name, values in classes.items()}}


def _means(rows: Sequence[Row]) -> dict[str, float]:
    return {name: segmentation.mean([row[name] for row in rows]) for name in _MEANS}


def mean_metrics_by_dataset(rows: Sequence[Row]) -> list[Row]:
    """Return the number of images and mean metrics of each role, dataset and class."""
    classes = list(dict.fromkeys(row["class"] for row in rows))
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["role"], row["dataset"], classes.index(row["class"])), []).append(row)
    return [
        {"role": role, "dataset": dataset, "class": classes[number], "images": len(subset), **_means(subset)}
        for (role, dataset, number), subset in sorted(groups.items(), key=lambda group: group[0])
    ]


def _for_each_class(classes: Sequence[str], measure: Callable[[Sample, str, NDArray[np.float32], U8], Row]) -> Measure:
    """Return a measure that applies another one to each annotated class."""

    def measure_all(sample: Sample, probabilities: NDArray[np.float32]) -> list[Row]:
        if sample.masks is None:
            return []
        return [
            {**_ids(sample), "class": name, **measure(sample, name, predicted, mask)}
            for name, predicted, mask in zip(classes, probabilities, sample.masks, strict=True)
            if is_annotated(mask)
        ]

    return measure_all


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
