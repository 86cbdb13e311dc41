"""Rank predictions by doubt: flags first, then the score."""

from lungseg.arrays import Row
from lungseg.ingest.reason_codes import QUESTIONABLE


def questions(row: Row) -> list[str]:
    """Return the flags of a row that question its image or its mask."""
    return [flag for flag in row["flags"] or () if flag in QUESTIONABLE]


def doubt_key(row: Row) -> tuple[int, float]:
    """Return the sort key of a row: most flags first, then the highest doubt."""
    return -len(questions(row)), -(row["doubt"] or 0.0)
