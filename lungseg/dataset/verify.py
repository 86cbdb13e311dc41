"""Verify a finished dataset byte by byte: report what is missing, damaged, unknown or from another run."""

from collections import defaultdict

from lungseg import storage
from lungseg.arrays import Row
from lungseg.dataset.catalog import check_shard_sizes, read_dataset_json
from lungseg.dataset.shard_format import member_ranges, verify_checksums
from lungseg.errors import InputError, ShardError
from lungseg.storage.table_formats import INDEX_TABLE


def check_metadata(folder: str) -> tuple[list[str], list[tuple[Row, list[Row]]]]:
    """Check everything except the content of the tars.

    Returns the problems, and for each tar its entry of dataset.json with its index rows (none where the index itself is
    damaged).
    """
    try:
        info = read_dataset_json(folder)
        files = {name: storage.read_bytes(storage.join(folder, name)) for name in info["files"]}
    except InputError as error:
        return [str(error)], []
    problems = [
        f"{folder}/{name}: does not match dataset.json: damaged, or from another run; run lungseg prepare again"
        for name, content in files.items()
        if storage.digest_bytes(content) != info["files"][name]
    ]
    if problems:
        # Each tar can still be compared with its digest in dataset.json.
        return problems, [(shard, []) for shard in info["shards"]]
    names = {shard["name"] for shard in info["shards"]}
    unknown = [
        f"{path}: not listed in dataset.json: move it out of this dataset, or run lungseg prepare again"
        for path in storage.list_files(folder, (".tar",))
        if storage.name_of(path).removesuffix(".tar") not in names
    ]
    rows_by_shard = defaultdict(list)
    path = storage.join(folder, "index.parquet")
    try:
        index = storage.read_table(path, files["index.parquet"], INDEX_TABLE)
    except InputError as error:
        return [str(error)], [(shard, []) for shard in info["shards"]]
    for row in index.to_pylist():
        rows_by_shard[row["shard"]].append(row)
    return unknown, [(shard, rows_by_shard[shard["name"]]) for shard in info["shards"]]


def check_shard(folder: str, shard: Row, rows: list[Row]) -> list[str]:
    """Read a complete tar, compare it with its entry of dataset.json and its index rows, and return the problems."""
    path = storage.join(folder, f"{shard['name']}.tar")
    try:
        check_shard_sizes(folder, [shard])
        content = storage.read_bytes(path)
    except InputError as error:
        return [str(error)]
    if storage.digest_bytes(content) == shard["sha256"]:
        return []
    damaged = [row["image_id"] for row in rows if not _is_intact(row, content, path)]
    extent = "outside the samples"
    if damaged:
        extent = f"damaged samples: {', '.join(damaged[:5])}{' ...' if len(damaged) > 5 else ''}"
    return [f"{path}: the content changed after it was written ({extent}): run lungseg prepare again"]


def _is_intact(row: Row, tar: bytes, path: str) -> bool:
    members = {name: tar[offset : offset + size] for name, (offset, size) in member_ranges(row).items()}
    try:
        verify_checksums(row, members, path)
    except ShardError:
        return False
    return True
