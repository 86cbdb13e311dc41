"""Lines of the result tables: metrics of groups of images."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lungseg.arrays import Row
from lungseg.metrics import bootstrap
from lungseg.study.tested_images import mean_defined, metric_limits, patient_key, training_effects

METRICS = ("dice", "iou", "pixel_accuracy")
TRAINING_LABELS = {True: "seen", False: "unseen", None: "unknown"}
"""Text for the values of the column seen_in_training."""
_DICE_STATISTICS = ("low", "high", "sd", "median", "p5", "basis")


@dataclass(frozen=True)
class ResultLine:
    """Metrics of a group of images. about: the columns that name the group. dice: one value per image."""

    about: Row
    metrics: Row
    dice: tuple[float, ...]

    def as_json(self) -> Row:
        """Flatten to one level."""
        return {**self.about, **self.metrics}


def compute_metrics(rows: Sequence[Row]) -> Row:
    """Compute means over the images that have a reference mask; None if there is none.

    images: number of all rows.
    dice_low, dice_high: 95 % interval of the mean Dice, by bootstrap over patients; None for fewer than two patients.
    Also over trainings where the rows of several seeds were merged. dice_basis: which of the two.
    dice_sd, dice_median, dice_p5: standard deviation, median and 5th percentile of the Dice over images.
    """
    with_reference = [row for row in rows if row["dice"] is not None]
    dice = [row["dice"] for row in with_reference]
    effects = training_effects([row for row in with_reference if "rows" in row], "dice")
    patients = [patient_key(row) for row in with_reference]
    summary = bootstrap.summarise(dice, patients, list(effects.values()), metric_limits("dice")) if dice else None
    return {
        "images": len(rows),
        **{name: mean_defined(row[name] for row in with_reference) for name in METRICS},
        **{f"dice_{name}": getattr(summary, name) if summary else None for name in _DICE_STATISTICS},
        "dice_min": min(dice, default=None),
    }


def group_by(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of the named columns, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups
