"""Read columns of CSV and Parquet files as text."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from lungseg import storage
from lungseg.arrow import pa, pacsv, pq
from lungseg.errors import InputError

Content: TypeAlias = "bytes | pa.NativeFile"
"""Content of a file, or an open Parquet file."""

_PIECE_ROWS, _BUFFER = 1 << 14, 1 << 20
_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", "\t", ";")
# A first line that gives Excel the delimiter; the column names are in the second line.
_DELIMITER_LINE = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([^"\w\r\n\x80-\xff])"?\r?\n', re.IGNORECASE)


def open_content(path: str) -> Content:
    """Open a Parquet file, or read another one.

    Raises:
        InputError: the file does not exist or cannot be read.

    """
    is_parquet = storage.read_range(path, 0, len(_PARQUET)) == _PARQUET
    return storage.open_large(path) if is_parquet else storage.read_bytes(path)


def column_names(content: Content, path: str) -> list[str]:
    """Return the column names of a table, in order.

    Raises:
        InputError: the file is neither Parquet nor CSV in UTF-8, or it is empty.

    """
    if _is_parquet(content):
        try:
            return list(_open_parquet(content).schema_arrow.names)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            raise InputError(f"{path}: not a Parquet file, or a damaged one: export it again") from None
    try:
        names, _ = _read_header(*_split_delimiter_line(content))
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: neither Parquet nor CSV in UTF-8: save it as one of these") from None
    if b"\0" in content:
        raise InputError(f"{path}: has zero bytes, as UTF-16 or a damaged file: save it as CSV in UTF-8")
    if not names:
        raise InputError(f"{path}: no header, expected the column names in the first line: add them")
    return names


def plain_name(name: str) -> str:
    """Reduce a column name to what is compared: letters and digits without case; `Patient-ID` is `patientid`."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def find_column(wanted: str, names: Iterable[str], path: str) -> str | None:
    """Return the column with a name, whatever its case, blanks, hyphens and underscores; None if there is none.

    Raises:
        InputError: several columns have it.

    """
    matches = [
        name for name in names if plain_name(name) == plain_name(wanted) and (plain_name(name) or name == wanted)
    ]
    if len(matches) > 1:
        spellings = " or ".join(dict.fromkeys(matches))
        raise InputError(f"{path}: {len(matches)} columns are called {spellings}: rename all but one")
    return matches[0] if matches else None


def read_columns(content: Content, path: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Read the named columns as `read_pieces` does, in one piece.

    Raises:
        InputError: as `read_pieces`.

    """
    columns: dict[str, list[str]] = {name: [] for name in names}
    for piece in read_pieces(content, path, columns):
        for name, cells in piece.items():
            columns[name] += cells
    return columns


def read_pieces(content: Content, path: str, names: Iterable[str]) -> Iterator[dict[str, list[str]]]:
    """Yield the named columns in pieces: each cell as text without surrounding blanks, an empty one as ``.

    Of an open Parquet file, one piece is in memory at a time.

    Raises:
        InputError: the file is damaged or not UTF-8, a row has more or fewer cells than the header, or one of the
            columns of a Parquet file has neither text nor numbers.

    """
    columns = list(dict.fromkeys(names))
    present = column_names(content, path)
    _require_unique(present, columns, path)
    try:
        if _is_parquet(content):
            # On this thread only, for the reason given in storage.read_table.
            batches = _open_parquet(content).iter_batches(_PIECE_ROWS, columns=columns, use_threads=False)
        else:
            batches = _read_csv(content, path, columns).to_batches(_PIECE_ROWS)
        for batch in batches:
            yield _texts(batch, path)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        # Without the message of the library: it may quote a row, which may identify a patient.
        raise InputError(f"{path}: cannot be read (damaged, or not UTF-8): save it again, CSV as UTF-8") from None


def _texts(piece: pa.RecordBatch, path: str) -> dict[str, list[str]]:
    piece.validate(full=True)  # text may not be UTF-8
    for name in piece.schema.names:
        kind = piece[name].type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise InputError(f"{path}: column {name} has the type {kind}, expected text: export paths, not images")
    return {name: _cells(piece[name]) for name in piece.schema.names}


def _cells(column: pa.Array) -> list[str]:
    if pa.types.is_string(column.type):  # the usual kind, without a call for each cell
        return [value.strip() if value else "" for value in column.to_pylist()]
    return [_text(value) for value in column.to_pylist()]


def _require_unique(present: list[str], names: Iterable[str], path: str) -> None:
    double = next((name for name in names if present.count(name) > 1), None)
    if double is not None:
        raise InputError(f"{path}: several columns are called {double}: rename all but one")


def _is_parquet(content: Content) -> bool:
    return not isinstance(content, bytes) or content.startswith(_PARQUET)


def _open_parquet(content: Content) -> pq.ParquetFile:
    source = pa.BufferReader(content) if isinstance(content, bytes) else content
    return pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER)


def _split_delimiter_line(content: bytes) -> tuple[bytes, str]:
    """Split off a first line that gives the delimiter (`sep=;`); return the table, and the delimiter or ``."""
    match = _DELIMITER_LINE.match(content)
    return (content[match.end() :], match[1].decode()) if match else (content, "")


def _read_header(content: bytes, delimiter: str) -> tuple[list[str], str]:
    """Return the column names and the delimiter; if none is given, the most frequent candidate in the first line."""
    line = io.BytesIO(content.removeprefix(_BOM)).readline().decode("utf-8").strip("\r\n")
    delimiter = delimiter or max(_DELIMITERS, key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def _read_csv(content: bytes, path: str, columns: list[str]) -> pa.Table:
    content, delimiter = _split_delimiter_line(content)
    names, delimiter = _read_header(content, delimiter)
    invalid_rows: list[Any] = []

    def skip(row: Any) -> str:
        invalid_rows.append(row)
        return "skip"

    content.decode("utf-8-sig")  # Arrow would print a traceback for a row that is not UTF-8 and has too many cells
    table = pacsv.read_csv(
        pa.BufferReader(content),
        pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
        pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
        pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns),
    )
    if content.count(b"\n") > table.num_rows + 1:  # a cell has line breaks, or there are blank lines
        _require_closed_quotes(content, delimiter, path)
    if invalid_rows:
        # The message does not show the row: it may identify a patient.
        row = invalid_rows[0]
        raise InputError(
            f"{path}: row {row.number - 1} has {row.actual_columns} cells, expected {len(names)}: put cells that "
            "contain the delimiter in double quotes"
        )
    return table


def _require_closed_quotes(content: bytes, delimiter: str, path: str) -> None:
    """Refuse a double quote that is never closed: all later rows would become one cell.

    Raises:
        InputError: there is one.

    """
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    number = -1  # of the header
    try:
        for row in rows:
            number += bool(row)
    except csv.Error:
        raise InputError(
            f"{path}: row {number + 1} has a double quote that is not closed correctly: close it, and write a double "
            "quote inside a cell twice"
        ) from None


def _text(value: Any) -> str:
    """Convert a cell to text; NaN, which pandas writes for missing values, is empty."""
    return "" if value is None or value != value else str(value).strip()  # noqa: PLR0124
