"""Rank predictions by doubt: flags first, then the score."""

from collections.abc import Sequence

import numpy as np

from lungseg.arrays import Row
from lungseg.ingest.reason_codes import QUESTIONABLE


def questions(row: Row) -> list[str]:
    """Return the flags of a row that question its image or its mask."""
    return [flag for flag in row["flags"] or () if flag in QUESTIONABLE]


def doubt_key(row: Row) -> tuple[int, float]:
    """Return the sort key of a row: most flags first, then the highest doubt."""
    return -len(questions(row)), -(row["doubt"] or 0.0)


def highest_usual_doubt(doubts: Sequence[float | None]) -> float:
    """Return the third quartile plus 1.5 times the interquartile range; higher doubts are unusual among these rows.

    A fixed limit would depend on the model. Source: Tukey, Exploratory Data Analysis, 1977, the upper inner fence.
    """
    known = [doubt for doubt in doubts if doubt is not None]
    if not known:
        return 1.0
    first, third = np.quantile(known, [0.25, 0.75])
    return float(third + 1.5 * (third - first))
