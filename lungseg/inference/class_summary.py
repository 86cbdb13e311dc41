"""Count the images that show each of several classes, and compute its mean Dice."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lungseg.arrays import Row
from lungseg.config.class_names import ONE_CLASS, lung_parts
from lungseg.schema import USABLE

logger = logging.getLogger(__name__)

_LUNGS = "both lungs"


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


class ClassTotals:
    """Counts rows by class, and both lungs where each is a class; nothing for the one class lung."""

    def __init__(self, classes: Sequence[str]) -> None:
        names = [] if tuple(classes) == ONE_CLASS else list(classes)
        self._joins_lungs = len(lung_parts(names)) > 1
        self._totals = {name: _Total() for name in [*([_LUNGS] if self._joins_lungs else []), *names]}

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows of PREDICTIONS; they need no masks."""
        for row in rows if self._totals else ():
            if row["status"] not in USABLE:
                continue
            if self._joins_lungs:
                self._totals[_LUNGS].add(row, bool(row["seen_in_training"]))
            for one in row["classes"]:
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
        """Log one line a class."""
        if not self._totals:
            return
        width = max(map(len, ["class", *self._totals]))
        logger.info("%s  present in        mean Dice", "class".ljust(width))
        for name, total in self._totals.items():
            present = f"{total.present} of {total.predicted}"
            dice = "no reference" if total.mean_dice is None else f"{total.mean_dice:.3f} of {len(total.dices)}"
            dice += f" ({total.trained_on} trained on)" if total.trained_on else ""
            logger.info("%s  %s  %s", name.ljust(width), present.ljust(16), dice)
