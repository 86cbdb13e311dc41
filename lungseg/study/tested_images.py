"""Rows of study.parquet, merged to one result per image, and how its trainings differ.

Pure functions of rows (result_columns.STUDY_ROWS). Each image counts once in each figure: if several runs of a group
tested it (one for each seed; on other datasets one for each fold and seed), it counts with its mean over them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, get_args

from lungseg.arrays import Row
from lungseg.config import Protocol
from lungseg.metrics import bootstrap, training_noise
from lungseg.metrics.training_noise import FoldEffects, Measurements

METRICS = ("dice", "iou", "pixel_accuracy", "sensitivity", "precision", "hd95_px", "assd_px")
_UNKNOWN: Row = dict.fromkeys(("finding", "age_group", "sex"))

Images = dict[str, Row]
"""By image id: patient, the mean of each metric over the runs, and the rows of these runs."""


class RunGroup(NamedTuple):
    """Runs that differ only in fold and seed. train_on: training datasets, joined by +."""

    protocol: str
    train_on: str

    @property
    def label(self) -> str:
        """Display name."""
        return f"{' + '.join(self.train_on.split('+'))} ({self.protocol})"


ImageResults = dict[tuple[RunGroup, str, str], Images]
"""Images by run group, role and dataset."""


@dataclass(frozen=True)
class TestedDataset:
    """Number of images and patients of a dataset that a study tested.

    patients: images that the audit linked show one patient. named_patients: by the ids of the archive.
    """

    dataset: str
    images: int
    patients: int
    named_patients: int


def tested_datasets(rows: Iterable[Row]) -> tuple[TestedDataset, ...]:
    """Count the images and patients of each dataset, by name."""
    patients: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for row in rows:
        patients[row["dataset"]][row["image_id"]] = patient_key(row), row["patient_id"] or row["image_id"]
    return tuple(
        TestedDataset(name, len(keys), *(len(set(column)) for column in zip(*keys.values(), strict=True)))
        for name, keys in sorted(patients.items())
    )


def by_class(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each class, in order of first appearance; "" for a study of one class, which needs no name."""
    classes: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        classes[row["class"]].append(row)
    return {"": list(rows)} if len(classes) < 2 else dict(classes)


def class_json(class_name: str) -> Row:
    """Return the class as a field; nothing in a study of one class."""
    return {"class": class_name} if class_name else {}


def study_rows(
    tested: Iterable[Row],
    protocol: str,
    train_on: Sequence[str],
    fold: int,
    seed: int = 0,
    subgroups: Mapping[tuple[str, str], Row] | None = None,
) -> list[Row]:
    """Convert the rows of a run's tested.parquet to rows of study.parquet.

    subgroups: finding, age_group and sex by (dataset, image_id), where known.
    """
    plan, known = {"protocol": protocol, "train_on": "+".join(train_on), "fold": fold, "seed": seed}, subgroups or {}
    return [{**row, **plan, **_UNKNOWN, **known.get((row["dataset"], row["image_id"]), _UNKNOWN)} for row in tested]


def mean_per_image(rows: Sequence[Row]) -> ImageResults:
    """Group rows of one class by run group, role and dataset; merge those of an image to their means over the runs."""
    groups: dict[tuple[RunGroup, str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[RunGroup(row["protocol"], row["train_on"]), row["role"], row["dataset"]][row["image_id"]].append(row)
    return {
        key: {
            image: {
                "patient": patient_key(same[0]),
                "rows": same,
                **{name: mean_defined(row[name] for row in same) for name in METRICS},
            }
            for image, same in sorted(images.items())
        }
        for key, images in sorted(groups.items(), key=lambda item: _sort_key(*item[0]))
    }


def patient_key(row: Row) -> str:
    """Return the patient of an image: its audit group if any, else its patient id, else its own image id."""
    return row.get("group") or f"{row['dataset']}/{row['patient_id'] or row['image_id']}"


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values; None if there is none."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def defined(images: Iterable[Row], metric: str) -> tuple[list[float], list[str]]:
    """Return the values and the patients of the images that define a metric."""
    rows = [row for row in images if row[metric] is not None]
    return [row[metric] for row in rows], [row["patient"] for row in rows]


def metric_limits(metric: str) -> tuple[float, float]:
    """Return the range of a metric: distances in px have no upper limit."""
    return (0.0, math.inf) if metric.endswith("_px") else (0.0, 1.0)


def training_effects(images: Iterable[Row], metric: str) -> dict[int, FoldEffects]:
    """Return the effects of the trainings on the mean over images, by fold; nothing where each has one training."""
    rows = [(image, row) for image in images for row in image["rows"] if row[metric] is not None]
    if len({row["seed"] for _, row in rows}) < 2:
        return {}
    measured = Measurements(
        [row[metric] for _, row in rows],
        [f"{row['dataset']}/{row['image_id']}" for _, row in rows],
        [image["patient"] for image, _ in rows],
        [row["fold"] for _, row in rows],
        [row["seed"] for _, row in rows],
    )
    return training_noise.fold_effects(measured)


def summarise_images(images: Iterable[Row], metric: str) -> bootstrap.Summary | None:
    """Summarise a metric over images; None if no image defines it."""
    rows = list(images)
    values, patients = defined(rows, metric)
    effects = list(training_effects(rows, metric).values())
    return bootstrap.summarise(values, patients, effects, metric_limits(metric)) if values else None


def seed_means(images: Iterable[Row], metric: str) -> dict[int, float]:
    """Return the mean over images of each seed that every fold was trained with."""
    by_seed: dict[int, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    seeds: dict[int, set[int]] = defaultdict(set)
    for row in (row for image in images for row in image["rows"] if row[metric] is not None):
        by_seed[row["seed"]][row["dataset"], row["image_id"]].append(row[metric])
        seeds[row["fold"]].add(row["seed"])
    complete = sorted(set.intersection(*seeds.values())) if seeds else []
    return {seed: fmean(fmean(values) for values in by_seed[seed].values()) for seed in complete}


def _sort_key(run_group: RunGroup, role: str, dataset: str) -> tuple[int, str, bool, str]:
    """Sort protocols in the order of the settings, and held-out before cross."""
    return get_args(Protocol).index(run_group.protocol), run_group.train_on, role != "held-out", dataset
