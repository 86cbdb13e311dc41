"""Prediction rows as CSV for spreadsheets: one line an image, most doubtful first, no masks."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from lungseg.arrays import Row
from lungseg.config.class_names import ONE_CLASS
from lungseg.imaging.derived_measures import MEASURES
from lungseg.predictions.class_columns import class_columns, with_class_columns
from lungseg.predictions.ranking import doubt_key
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import USABLE

MAX_ROWS = 1_048_575
"""Rows that a spreadsheet can hold below the header."""
_FIRST = ("doubt", "doubt_reason", "flags")
_LEFT_OUT = ("mask", "mask_values", "mask_classes", "geometry", "seconds", "classes", *MEASURES)
COLUMNS = (*_FIRST, *(name for name in PREDICTIONS.names if name not in (*_FIRST, *_LEFT_OUT)))
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet runs a cell that begins with one of these
_LIST_SEPARATOR = ";"


class CsvTable:
    """Collects rows of PREDICTIONS and encodes them, ranked by doubt; images without a mask come last, unranked."""

    def __init__(
        self, columns: Sequence[str] = COLUMNS, classes: Sequence[str] = ONE_CLASS, with_metrics: bool = True
    ) -> None:
        """Begin a table with these columns, and those of `class_columns` for the classes of the model."""
        self._classes = classes
        self._columns = (*columns, *class_columns(classes, with_metrics))
        self._ranked: list[tuple[tuple[int, float], int, str]] = []  # key, position, line
        self._unranked: list[str] = []

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._ranked) + len(self._unranked)

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; they need no masks."""
        for row in rows:
            flat = with_class_columns(row, self._classes)
            line = _line(_cell(flat[name]) for name in self._columns)
            if row["status"] in USABLE:
                self._ranked.append((doubt_key(row), len(self._ranked), line))
            else:
                self._unranked.append(line)

    def encode(self) -> bytes:
        """Encode as UTF-8 with a byte order mark, without which some spreadsheets misread letters like ü.

        Items of a list are joined by semicolons. Text that a spreadsheet would run as a formula begins with an
        apostrophe.
        """
        lines = [_line(["rank", *self._columns])]
        lines += [f"{rank},{line}" for rank, (_, _, line) in enumerate(sorted(self._ranked), 1)]
        lines += [f",{line}" for line in self._unranked]
        return "".join(lines).encode("utf-8-sig")


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = _LIST_SEPARATOR.join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
