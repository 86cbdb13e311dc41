"""One line of a results table: metrics of a group of images."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lungseg.arrays import Row
from lungseg.metrics import bootstrap
from lungseg.study.cross_dataset import mean_defined, patient_key

METRICS = ("dice", "iou", "pixel_accuracy")


_DICE = ("low", "high", "sd", "median", "p5")  # of statistics.Summary


@dataclass(frozen=True)
class ResultLine:
    """One line of a table: what it is about, its figures, and the Dice of each image behind them."""

    about: Row
    compute_metrics: Row
    dice: tuple[float, ...]

    def as_json(self) -> Row:
        """Join what it is about with its figures."""
        return {**self.about, **self.figures}


def compute_metrics(rows: Sequence[Row]) -> Row:
    """Take per-image means of the rows that were compared with a reference; None where there is none.

    dice_low, dice_high: 95 % interval of the mean Dice, by a bootstrap over patients; None for fewer than two.
    dice_sd, dice_median, dice_p5: standard deviation, median and 5th percentile of the images' Dice.
    """
    compared = [row for row in rows if row["dice"] is not None]
    dice = [row["dice"] for row in compared]
    found = bootstrap.summarise(dice, [patient_key(row) for row in compared]) if compared else None
    return {
        "images": len(rows),
        **{name: mean_defined(row[name] for row in compared) for name in METRICS},
        **{f"dice_{name}": getattr(found, name) if found else None for name in _DICE},
        "dice_min": min(dice, default=None),
    }


def group_by(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of the named columns, in order of first appearance."""
    parts: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        parts[tuple(row[name] for name in names)].append(row)
    return parts
