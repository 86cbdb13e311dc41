"""Parquet tables on any file system, with the schema version checked on read."""

import pyarrow as pa
import pyarrow.parquet as pq

from lungseg.errors import InputError, first_line
from lungseg.schema import check_schema
from lungseg.storage.files import read_bytes, write_bytes


def read_table(path: str, content: bytes | None = None) -> pa.Table:
    """Read one Parquet file that this schema wrote; `content` where its bytes were read before.

    Raises:
        InputError: it is not there, is no Parquet file, or carries another schema's number.

    """
    try:
        # On this thread alone: Arrow's thread pool, once used for Parquet, now and then aborts the process at its end
        # (apache/arrow issue 34314), which would turn a finished job into a failed one.
        source = pa.BufferReader(read_bytes(path) if content is None else content)
        table = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _no_table(path, error) from None
    metadata = {name: value.decode(errors="replace") for name, value in (table.schema.metadata or {}).items()}
    number = metadata.get(b"lungseg.schema", "none")
    check_schema(int(number) if number.isdigit() else number, path, metadata.get(b"lungseg.version", ""))
    return table


def _no_table(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: not a Parquet file ({first_line(error)}): make it again")


def count_rows(path: str, content: bytes) -> int:
    """Count the rows of a Parquet file from its foot alone, without decoding one.

    Raises:
        InputError: it is no Parquet file.

    """
    try:
        return int(pq.read_metadata(pa.BufferReader(content)).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _no_table(path, error) from None


def table_bytes(table: pa.Table) -> bytes:
    """Make a table a Parquet file, zstd, with a checksum a page; the same bytes every time."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def write_table(path: str, table: pa.Table) -> None:
    """Write one Parquet file."""
    write_bytes(path, table_bytes(table))
