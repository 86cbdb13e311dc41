"""Results of predictions of several classes: metrics of each class, and the measures of their masks."""

from collections.abc import Sequence

import numpy as np

from lungseg.arrays import Row
from lungseg.imaging.derived_measures import MEASURES
from lungseg.report.result_table import group_by

MEASURE_TITLES = dict(
    zip(
        MEASURES,
        ("heart / thorax", "right lung, opaque share", "left lung, opaque share", "right / left lung"),
        strict=True,
    )
)
"""What the table of measures calls them."""


def class_rows(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each image and class, with the columns of the image and those of the class over them."""
    return [{**row, **entry} for row in rows for entry in row.get("classes") or ()]


def summarise_measures(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return median, 5th and 95th percentile of each measure for each dataset that has values."""
    lines = []
    groups = sorted(group_by(rows, ("dataset",)).items())
    for name, title in MEASURE_TITLES.items():
        for (dataset,), group in groups:
            values = [row[name] for row in group if row.get(name) is not None]
            if values:
                low, median, high = (float(value) for value in np.percentile(values, [5, 50, 95]))
                about = {"measure": name, "title": title, "dataset": dataset, "images": len(values)}
                lines.append({**about, "median": median, "p5": low, "p95": high})
    return tuple(lines)
