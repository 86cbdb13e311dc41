"""Parquet tables on any file system, with the schema version checked on read."""

import re
from collections.abc import Iterable, Iterator

from lungseg.arrow import pa, pq
from lungseg.errors import InputError
from lungseg.schema import check_schema
from lungseg.storage.files import read_bytes, write_bytes
from lungseg.storage.table_formats import TableFormat, check_table, with_added_columns

_PIECE_ROWS, _BUFFER = 1 << 14, 1 << 20
_NUMBER = re.compile(r"[0-9]{1,9}")


def read_table(path: str, content: bytes | None = None, expected: TableFormat | None = None) -> pa.Table:
    """Read a Parquet file of the current schema version.

    content: the bytes of the file, where they were read before. expected: the columns and values that it must have.

    Raises:
        InputError: the file does not exist, is not a Parquet file, or has another schema version, columns or values.

    """
    try:
        # No threads: Arrow's thread pool sometimes aborts the process at exit after reading Parquet (apache/arrow issue
        # 34314), which would turn a finished job into a failed one.
        source = pa.BufferReader(read_bytes(path) if content is None else content)
        table = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True).read(use_threads=False)
        table.validate(full=True)  # text may not be UTF-8
    except (pa.ArrowException, OSError):
        raise _not_parquet(path) from None
    _check_version(table.schema, path)
    if expected is None:
        return table
    table = with_added_columns(table, expected)
    check_table(table, path, expected)
    return table


def read_table_pieces(path: str, local: str, expected: TableFormat) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file in pieces, checked as in `read_table`; one piece is in memory at a time.

    path: named in errors. local: path of the file or of its copy on a disk.

    Raises:
        InputError: as `read_table`.

    """
    try:
        with pq.ParquetFile(local, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True) as file:
            _check_version(file.schema_arrow, path)
            for batch in file.iter_batches(_PIECE_ROWS, use_threads=False):
                piece = pa.Table.from_batches([batch])
                piece.validate(full=True)
                check_table(piece, path, expected)
                yield piece
    except (pa.ArrowException, OSError):
        raise _not_parquet(path) from None


def _check_version(schema: pa.Schema, path: str) -> None:
    metadata = {name: value.decode(errors="replace") for name, value in (schema.metadata or {}).items()}
    number = metadata.get(b"lungseg.schema", "none")
    check_schema(int(number) if _NUMBER.fullmatch(number) else number, path, metadata.get(b"lungseg.version", ""))


def _not_parquet(path: str) -> InputError:
    return InputError(f"{path}: not a Parquet file, or a damaged one: create it again")


def count_rows(path: str, content: bytes) -> int:
    """Count the rows of a Parquet file from its footer, without decoding data.

    Raises:
        InputError: the content is not a Parquet file.

    """
    try:
        return int(pq.read_metadata(pa.BufferReader(content)).num_rows)
    except (pa.ArrowException, OSError):
        raise _not_parquet(path) from None


def table_bytes(table: pa.Table) -> bytes:
    """Encode a table as Parquet with zstd and page checksums; equal tables give equal bytes."""
    return pieces_bytes(table.schema, [table])


def pieces_bytes(schema: pa.Schema, pieces: Iterable[pa.Table]) -> bytes:
    """Encode the pieces of a table as `table_bytes` does, one after the other, with the metadata of `schema`."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for piece in pieces:
            writer.write_table(piece.replace_schema_metadata(schema.metadata))
    return bytes(sink.getvalue().to_pybytes())


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as a Parquet file."""
    write_bytes(path, table_bytes(table))
