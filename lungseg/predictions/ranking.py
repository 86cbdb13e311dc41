"""Rank predictions by doubt: flags first, then the score."""

from collections.abc import Sequence

import numpy as np

from lungseg.arrays import Row
from lungseg.errors import ImageError
from lungseg.ingest.reason_codes import QUESTIONABLE


def questions(row: Row) -> list[str]:
    """Return the flags of a row that question its image or its mask."""
    return [flag for flag in row["flags"] or () if flag in QUESTIONABLE]


def doubt_key(row: Row) -> tuple[int, float]:
    """Return the sort key of a row: most flags first, then the highest doubt."""
    return -len(questions(row)), -(row["doubt"] or 0.0)


def require_reliable(row: Row, max_doubt: float | None) -> None:
    """Refuse a prediction that a person must look at before it goes where others read it.

    max_doubt: `highest_usual_doubt` of the images that were predicted together; None for a single one.

    Raises:
        ImageError: `flagged` or `doubtful`.

    """
    flags = ", ".join(questions(row))
    advice = "look at it; to write it anyway, pass --include-doubtful (in Python include_doubtful=True)"
    if flags:
        raise ImageError("flagged", f"{row['source_uri']} is flagged ({flags}): {advice}")
    if max_doubt is not None and row["doubt"] is not None and row["doubt"] > max_doubt:
        raise ImageError(
            "doubtful",
            f"{row['source_uri']} has the doubt {row['doubt']:.3f}, usual are {max_doubt:.3f} or less: {advice}",
        )


def highest_usual_doubt(doubts: Sequence[float | None]) -> float:
    """Return the third quartile plus 1.5 times the interquartile range; higher doubts are unusual among these rows.

    The limit is at least 1.5 times the third quartile, because among similar images the range is tiny. A fixed limit
    would depend on the model. Source: Tukey, Exploratory Data Analysis, 1977, the upper inner fence.
    """
    known = [doubt for doubt in doubts if doubt is not None]
    if not known:
        return 1.0
    first, third = np.quantile(known, [0.25, 0.75])
    return float(third + max(1.5 * (third - first), 0.5 * third))
