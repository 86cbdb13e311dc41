"""Count the images that show each class, and compute its mean Dice."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lungseg.arrays import Row
from lungseg.config.class_names import ONE_CLASS, lung_parts
from lungseg.plurals import counted
from lungseg.schema import USABLE

logger = logging.getLogger(__name__)

_LUNGS = "both lungs"


def describe_trained_on(seen: int, images: int) -> str:
    """Say how many of the images the model was trained on; their masks say little about its quality."""
    return f"the model was trained on {seen} of {counted(images, 'image')}: new images may get worse masks"


@dataclass
class _Total:
    """predicted: images. present: those with a predicted pixel of the class. dices: of those with a reference.

    trained_on: those with a reference that all models were trained on.
    """

    predicted: int = 0
    present: int = 0
    dices: list[float] = field(default_factory=list)
    trained_on: int = 0

    def add(self, values: Row, is_trained_on: bool) -> None:
        self.predicted += 1
        self.present += bool(values["area_px"])
        if values["dice"] is not None:
            self.dices.append(values["dice"])
            self.trained_on += is_trained_on

    @property
    def mean_dice(self) -> float | None:
        return math.fsum(self.dices) / len(self.dices) if self.dices else None

    def describe_dice(self) -> str:
        """Return the mean Dice and of how many images it is, as in `0.973 of 28 (20 trained on)`; "" without any."""
        if self.mean_dice is None:
            return ""
        trained_on = f" ({self.trained_on} trained on)" if self.trained_on else ""
        return f"{self.mean_dice:.3f} of {len(self.dices)}{trained_on}"


class ClassTotals:
    """Counts rows by class; the lungs of a row are those of the only class, or both lungs where each is a class."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._is_one_class = tuple(classes) == ONE_CLASS
        joined = [_LUNGS] if len(lung_parts(classes)) > 1 else []
        self._lungs = classes[0] if self._is_one_class else next(iter(joined), "")
        self._totals = {name: _Total() for name in [*joined, *classes]}
        self._predicted = self._trained_on = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows of PREDICTIONS; they need no masks."""
        for row in rows:
            if row["status"] not in USABLE:
                continue
            self._predicted += 1
            self._trained_on += bool(row["seen_in_training"])
            if self._lungs:
                self._totals[self._lungs].add(row, bool(row["seen_in_training"]))
            for one in row["classes"] or ():
                self._totals[one["class"]].add(one, bool(row["seen_in_training"]))

    def as_json(self) -> list[dict[str, Any]]:
        """Return the totals for predictions.json."""
        return [
            {
                "class": name,
                "images": total.predicted,
                "present": total.present,
                "compared": len(total.dices),
                "trained_on": total.trained_on,
                "mean_dice": total.mean_dice,
            }
            for name, total in self._totals.items()
        ]

    def log(self) -> None:
        """Log one line a class; of the one class lung, only the mean Dice if there are references.

        Also, how many images the model was trained on.
        """
        if self._is_one_class:
            self._log_only_class()
        else:
            self._log_classes()
        if self._trained_on:
            logger.info("%s", describe_trained_on(self._trained_on, self._predicted))

    def _log_classes(self) -> None:
        width = max(map(len, ["class", *self._totals]))
        logger.info("%s  present in        mean Dice", "class".ljust(width))
        for name, total in self._totals.items():
            present = f"{total.present} of {total.predicted}"
            logger.info("%s  %s  %s", name.ljust(width), present.ljust(16), total.describe_dice() or "no reference")

    def _log_only_class(self) -> None:
        (total,) = self._totals.values()
        if dice := total.describe_dice():
            logger.info("mean Dice %s with a reference mask", dice)
