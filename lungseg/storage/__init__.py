"""List, read, hash and atomically write files at local paths, s3:// and gs://."""

from lungseg.storage.files import (
    delete,
    delete_unfinished,
    digest,
    digest_bytes,
    exists,
    list_files,
    list_folders,
    list_stats,
    open_filesystem,
    read_bytes,
    read_range,
    stat,
    try_stat,
    write_bytes,
    write_stream,
)
from lungseg.storage.json_files import has_valid_digest, read_json, write_json
from lungseg.storage.large_files import local_file, map_file, open_large, read_chunks
from lungseg.storage.paths import is_inside, join, name_of, parent_of, resolve
from lungseg.storage.range_reader import RangeReader
from lungseg.storage.tables import count_rows, pieces_bytes, read_table, read_table_pieces, table_bytes, write_table

__all__ = [
    "RangeReader",
    "count_rows",
    "delete",
    "delete_unfinished",
    "digest",
    "digest_bytes",
    "exists",
    "has_valid_digest",
    "is_inside",
    "join",
    "list_files",
    "list_folders",
    "list_stats",
    "local_file",
    "map_file",
    "name_of",
    "open_filesystem",
    "open_large",
    "parent_of",
    "pieces_bytes",
    "read_bytes",
    "read_chunks",
    "read_json",
    "read_range",
    "read_table",
    "read_table_pieces",
    "resolve",
    "stat",
    "table_bytes",
    "try_stat",
    "write_bytes",
    "write_json",
    "write_stream",
    "write_table",
]
