"""Flat columns of several classes, such as heart_px and heart_dice, for tables that cannot hold a list."""

from collections.abc import Iterable, Sequence

from lungseg.arrays import Row
from lungseg.config.class_names import ONE_CLASS
from lungseg.imaging.derived_measures import MEASURES
from lungseg.result_columns import PREDICTIONS

_VALUES = {
    "px": "area_px",
    "cm2": "",
    "components": "components",
    "mean_probability": "mean_probability",
    "dice": "dice",
    "iou": "iou",
    "hd95_px": "hd95_px",
    "assd_px": "assd_px",
}
"""Ends of the columns, and the fields of `classes` that they have; areas in cm2 follow from the spacing."""


def classes_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the classes of the model that predicted these rows; the one class lung where no row lists any."""
    return next((tuple(one["class"] for one in row["classes"]) for row in rows if row.get("classes")), ONE_CLASS)


def class_columns(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns for several classes; none for the one class lung."""
    if tuple(classes) == ONE_CLASS:
        return ()
    names = (f"{name}_{end}" for name in classes for end in _VALUES)
    return (*MEASURES, *(name for name in names if name not in PREDICTIONS.names))


def with_class_columns(row: Row, classes: Sequence[str]) -> Row:
    """Return a row with the columns of `class_columns`, null where it was not predicted."""
    if tuple(classes) == ONE_CLASS:
        return row
    described = {one["class"]: one for one in row["classes"] or ()}
    values = {
        f"{name}_{end}": described[name][field] if field else _cm2(described[name]["area_px"], row["spacing_mm"])
        for name in described
        for end, field in _VALUES.items()
    }
    return {**dict.fromkeys(class_columns(classes)), **row, **values}


def _cm2(area_px: int, spacing_mm: float | None) -> float | None:
    return None if spacing_mm is None else area_px * (spacing_mm**2 / 100)
