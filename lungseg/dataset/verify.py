"""A finished data set, byte by byte: what is missing, damaged, strange or of another run."""

from collections import defaultdict
from typing import Any

from lungseg import storage
from lungseg.dataset.catalog import check_shard_size, read_dataset_json
from lungseg.dataset.shard_format import member_ranges, verify_checksums
from lungseg.errors import InputError, ShardError
from lungseg.storage.files import digest_bytes

Rows = list[dict[str, Any]]


def check_metadata(folder: str) -> tuple[list[str], list[tuple[dict[str, Any], Rows]]]:
    """Check all but the tars' content: what is wrong, and each tar's entry of dataset.json with its index rows."""
    try:
        info = read_dataset_json(folder)
        papers = {name: storage.read_bytes(storage.join(folder, name)) for name in info["files"]}
    except InputError as error:
        return [str(error)], []
    wrong = [
        f"{folder}/{name}: not the one that dataset.json was written with: of another run, or damaged; prepare it again"
        for name, content in papers.items()
        if digest_bytes(content) != info["files"][name]
    ]
    if wrong:
        # Each tar by itself can still be compared with dataset.json.
        return wrong, [(shard, []) for shard in info["shards"]]
    index: Rows = storage.read_table("index.parquet", papers["index.parquet"]).to_pylist()
    names = {shard["name"] for shard in info["shards"]}
    strange = [
        f"{path}: not a tar of this data set (dataset.json does not name it): take it away, or prepare again"
        for path in storage.list_files(folder, (".tar",))
        if storage.name_of(path).removesuffix(".tar") not in names
    ]
    own = defaultdict(list)
    for row in index:
        own[row["shard"]].append(row)
    return strange, [(shard, own[shard["name"]]) for shard in info["shards"]]


def check_shard(folder: str, shard: dict[str, Any], rows: Rows) -> list[str]:
    """Read one tar whole and compare it with dataset.json and with its index rows; say what is wrong."""
    path = storage.join(folder, f"{shard['name']}.tar")
    try:
        check_shard_size(folder, shard)
        content = storage.read_bytes(path)
    except InputError as error:
        return [str(error)]
    if digest_bytes(content) == shard["sha256"]:
        return []
    hurt = [row["image_id"] for row in rows if not _whole(row, content, path)]
    where = (
        f"damaged samples: {', '.join(hurt[:5])}{' ...' if len(hurt) > 5 else ''}" if hurt else "outside the samples"
    )
    return [f"{path}: its bytes are not those that were written ({where}): run jobs/prepare.py again"]


def _whole(row: dict[str, Any], content: bytes, path: str) -> bool:
    members = {name: content[at : at + size] for name, (at, size) in member_ranges(row).items()}
    try:
        verify_checksums(row, members, path)
    except ShardError:
        return False
    return True
