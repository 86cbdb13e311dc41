"""Rank the rows of a finished inference by doubt: predictions.csv, and the images to look at first."""

import heapq
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config.class_names import ONE_CLASS
from lungseg.inference.class_summary import ClassTotals
from lungseg.predictions.csv_table import MAX_ROWS, CsvTable
from lungseg.predictions.parts import part_files, read_part
from lungseg.predictions.ranking import doubt_key
from lungseg.schema import USABLE

logger = logging.getLogger(__name__)

CSV_NAME = "predictions.csv"
_READERS = 8  # threads that read parts; reads from a bucket mostly wait
_SHOWN = 5


def write_csv(out: str, classes: Sequence[str] = ONE_CLASS, totals: ClassTotals | None = None) -> list[Row]:
    """Write predictions.csv, unless a spreadsheet cannot hold it; return the most doubtful rows that have a mask.

    classes: of the model. totals: counts all rows.
    """
    table: CsvTable | None = CsvTable(classes=classes)
    totals = totals or ClassTotals(classes)
    most_doubtful: list[Row] = []
    for rows in _parts(out):
        totals.add(rows)
        predicted = [row for row in rows if row["status"] in USABLE]
        most_doubtful = heapq.nsmallest(_SHOWN, [*most_doubtful, *predicted], key=doubt_key)
        if table is not None and len(table) + len(rows) > MAX_ROWS:
            logger.warning("no %s: there are more than %d rows, read %s/rows instead", CSV_NAME, MAX_ROWS, out)
            table = None
        if table is not None:
            table.add(rows)
    if table is not None:
        storage.write_bytes(storage.join(out, CSV_NAME), table.encode())
    return most_doubtful


def log_most_doubtful(rows: list[Row]) -> None:
    """Log which images to look at first, and why."""
    rows = [row for row in rows if row["doubt"] is not None]  # models without lungs have no doubt
    if len(rows) < 2:
        return
    logger.info("look at these images first (those with a flag that questions the mask, then by doubt):")
    for row in rows:
        logger.info("  %s: doubt %.3f; %s", storage.name_of(row["source_uri"]), row["doubt"], row["doubt_reason"])


def _parts(out: str) -> Iterator[list[Row]]:
    """Yield the rows of each part, without masks; reads a few parts ahead."""
    paths = part_files(out)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(paths), _READERS):
            yield from pool.map(_read, paths[start : start + _READERS])


def _read(path: str) -> list[Row]:
    rows: list[Row] = read_part(path).drop_columns(["mask"]).to_pylist()
    return rows
