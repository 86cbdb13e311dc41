"""Flat columns of several classes, such as heart_px and heart_dice, for tables that cannot hold a list."""

from collections.abc import Sequence

from lungseg.arrays import Row
from lungseg.arrow import pa
from lungseg.config.class_names import ONE_CLASS
from lungseg.imaging.derived_measures import MEASURES
from lungseg.result_columns import PREDICTIONS

_METRICS = ("dice", "iou", "hd95_px", "assd_px")
_VALUES = {
    "px": "area_px",
    "cm2": "",
    "components": "components",
    "mean_probability": "mean_probability",
    "doubt": "doubt",
    **{name: name for name in _METRICS},
}
"""Ends of the columns, and the fields of `classes` that they have; areas in cm2 follow from the spacing."""


def class_columns(classes: Sequence[str], with_metrics: bool = True) -> tuple[str, ...]:
    """Return the names of the columns for several classes; none for the one class lung."""
    if tuple(classes) == ONE_CLASS:
        return ()
    ends = [end for end in _VALUES if with_metrics or end not in _METRICS]
    names = (f"{name}_{end}" for name in classes for end in ends)
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


def add_class_columns(rows: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Append the columns of `class_columns` that a table of rows lacks, as float64."""
    names = [name for name in class_columns(classes) if name not in rows.column_names]
    if not names:
        return rows
    flat = [with_class_columns(row, classes) for row in rows.select(["classes", "spacing_mm"]).to_pylist()]
    for name in names:
        rows = rows.append_column(name, pa.array([row[name] for row in flat], pa.float64()))
    return rows


def _cm2(area_px: int, spacing_mm: float | None) -> float | None:
    return None if spacing_mm is None else area_px * (spacing_mm**2 / 100)
