"""CSV and Parquet files read as columns of text; only the columns that are asked for are decoded."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from lungseg.errors import InputError, first_line

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", "\t", ";")
# A first line that tells Excel the delimiter; the names stand in the next one.
_HINT = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([^"\w\r\n\x80-\xff])"?\r?\n', re.IGNORECASE)


def column_names(content: bytes, path: str) -> list[str]:
    """Names of a table's columns, in their order.

    Raises:
        InputError: it is neither Parquet nor CSV in UTF-8, or empty.

    """
    try:
        if _is_parquet(content):
            return list(pq.ParquetFile(pa.BufferReader(content)).schema_arrow.names)
        names, _ = _read_header(*_split_hint(content))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({first_line(error)}): export it again") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: neither Parquet nor CSV in UTF-8: save it as one of these") from None
    if not names:
        raise InputError(f"{path}: no header, expected the columns' names in the first line: add them")
    return names


def read_columns(content: bytes, path: str, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Read the columns that are wanted, each cell as text without blanks around it, an empty one as ``.

    Raises:
        InputError: it is damaged, not UTF-8, a row has more or fewer cells than the header, or a wanted column of a
            Parquet file holds no text or numbers.

    """
    columns = list(dict.fromkeys(wanted))
    try:
        # On this thread alone, as storage.read_table says why.
        if _is_parquet(content):
            file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
            table = file.read(columns=columns, use_threads=False)
        else:
            table = _read_csv(content, path, columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}): save it again, CSV as UTF-8") from None
    odd = [name for name in columns if pa.types.is_nested(table[name].type) or pa.types.is_binary(table[name].type)]
    if odd:
        raise InputError(f"{path}: column {odd[0]} holds {table[odd[0]].type}, expected text: export paths, not images")
    return {name: [_text(value) for value in table[name].to_pylist()] for name in columns}


def _is_parquet(content: bytes) -> bool:
    return content.startswith(b"PAR1")


def _split_hint(content: bytes) -> tuple[bytes, str]:
    """Part the table from a line that names its delimiter (`sep=;`): the table, and the delimiter or ``."""
    hint = _HINT.match(content)
    return (content[hint.end() :], hint[1].decode()) if hint else (content, "")


def _read_header(content: bytes, told: str) -> tuple[list[str], str]:
    """Names and the delimiter that parts them: the one that was told, else the most frequent one in the first line."""
    line = io.BytesIO(content.removeprefix(_BOM)).readline().decode("utf-8").strip("\r\n")
    delimiter = told or max(_DELIMITERS, key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def _read_csv(content: bytes, path: str, columns: list[str]) -> pa.Table:
    content, told = _split_hint(content)
    names, delimiter = _read_header(content, told)
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(content),
        pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
        pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
        pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns),
    )
    if content.count(b"\n") > table.num_rows + 1:  # some cell has line breaks, or there are blank lines
        _require_closed(content, delimiter, path)
    if ragged:
        # Its text is not shown: it may tell of a patient.
        raise InputError(
            f"{path}: row {ragged[0].number - 1} has {ragged[0].actual_columns} cells, expected {len(names)}: "
            "put cells that hold the delimiter in double quotes"
        )
    return table


def _require_closed(content: bytes, delimiter: str, path: str) -> None:
    """Refuse a double quote that is never closed: all rows behind it would be one cell.

    Raises:
        InputError: there is one.

    """
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    number = -1  # the header's
    try:
        for row in rows:
            number += bool(row)
    except csv.Error:
        raise InputError(
            f"{path}: row {number + 1} has a double quote that is not closed as it should be: close it, and write one "
            "within a cell twice"
        ) from None


def _text(value: Any) -> str:
    """Write a cell as text; a number that is none, as pandas writes for what is missing, is empty."""
    return "" if value is None or value != value else str(value).strip()  # noqa: PLR0124
