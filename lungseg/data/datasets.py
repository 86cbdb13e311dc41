"""Prepared data sets as a whole: begun, finished from their parts, found, opened.

A prepared data set is a folder: `<dataset>-000000.tar` ..., `plan.parquet` (which input goes into which tar),
`parts/<shard>.json` (what each tar was made of, its digest, its members), `manifest.parquet` (every input and its
status), `index.parquet` (every sample and where it lies) and `dataset.json`, which is written last: a folder without it
is not finished. The index is what counts: an input that only the whole data set shows to be wrong (a mask far larger
than all others) lies in its tar, but not in the index.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.data import manifest
from lungseg.data.shard_plan import ShardPlan, save_plan
from lungseg.data.shards import digest_bytes, write_shard
from lungseg.errors import InputError, ShardError
from lungseg.schema import INDEX, MANIFEST, USABLE, Record, table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A finished data set: its folder, its name, its settings, one index row a sample, the digest of all its tars."""

    folder: str
    name: str
    preprocess: PreprocessSettings
    index: pa.Table
    digest: str


def begin_datasets(plans: Sequence[ShardPlan]) -> None:
    """Take back the mark of a finished data set before its tars may change, and write down the plan.

    Raises:
        InputError: a data set would lie where files of its archive lie.

    """
    folders = _by_folder(plans)
    for folder, own in folders.items():
        inside = next((one.image_uri for plan in own for one in plan.records if _inside(one, folder)), None)
        if inside:
            raise InputError(f"{folder}: the archive itself lies there ({inside}): pass another --out or --dataset")
    for folder, own in folders.items():
        storage.delete(storage.join(folder, "dataset.json"))
        save_plan(own)


def finish_dataset(plans: Sequence[ShardPlan]) -> dict[str, Any]:
    """Join one data set's parts, in the plans' order, to manifest, index and dataset.json; return what that says.

    Raises:
        InputError: not one input could be used, or a part cannot be read.

    """
    folder = plans[0].folder
    parts = [_read_part(plan) for plan in plans]
    shards = [shard for shard, _, _ in parts]
    records = _without_outliers(pa.concat_tables([records for _, records, _ in parts]))
    index = _of_usable(pa.concat_tables([index for _, _, index in parts]), records)
    del parts  # the rows of an archive of millions take GiB
    statuses, reasons = records.column("status").to_pylist(), records.column("reason").to_pylist()
    codes = _count_codes(statuses, reasons)
    manifest_bytes = storage.table_bytes(records)
    storage.write_bytes(storage.join(folder, "manifest.parquet"), manifest_bytes)
    if not index.num_rows:
        said = "; ".join(f"{count} {status} {code}" for status, found in codes.items() for code, count in found.items())
        raise InputError(
            f"{storage.name_of(folder)}: none of {len(statuses)} inputs can be used ({said}): see manifest.parquet"
        )
    index_bytes = storage.table_bytes(index)
    storage.write_bytes(storage.join(folder, "index.parquet"), index_bytes)
    _delete_others(folder, {shard["name"] for shard in shards})
    storage.delete_unfinished(folder)
    info = {
        "dataset": storage.name_of(folder),
        "preprocess": plans[0].preprocess.model_dump(),
        "inputs": len(statuses),
        "counts": dict(sorted(Counter(statuses).items())),
        "reasons": codes,
        "flags": dict(sorted(Counter(records.column("flags").combine_chunks().flatten().to_pylist()).items())),
        "samples": index.num_rows,
        "with_mask": sum(1 for size in index.column("mask_size").to_pylist() if size),
        "digest": storage.digest([shard["sha256"] for shard in shards] + [digest_bytes(index_bytes)]),
        "files": {"index.parquet": digest_bytes(index_bytes), "manifest.parquet": digest_bytes(manifest_bytes)},
        "shards": shards,
    }
    storage.write_json(storage.join(folder, "dataset.json"), {**info, "checked": storage.digest(info)})
    return info


def write_datasets(plans: Sequence[ShardPlan]) -> None:
    """Do the whole of a plan in this process; what the prepare pipeline does over a cluster."""
    begin_datasets(plans)
    for plan in plans:
        write_shard(plan)
    for own in _by_folder(plans).values():
        finish_dataset(own)


def datasets_in(path: str) -> list[str]:
    """List the finished data sets that a folder is or directly holds."""
    return [folder for folder in [path, *storage.list_folders(path)] if storage.exists(f"{folder}/dataset.json")]


def unfinished_in(path: str) -> list[str]:
    """List the data sets that a folder is or directly holds and that were begun but not finished."""
    return [
        folder
        for folder in [path, *storage.list_folders(path)]
        if storage.exists(f"{folder}/plan.parquet") and not storage.exists(f"{folder}/dataset.json")
    ]


def find_datasets(paths: Iterable[str]) -> list[str]:
    """List the prepared data sets that are named, or that lie directly in a named folder.

    Raises:
        InputError: a path is not there or holds no finished data set.

    """
    found: list[str] = []
    for path in paths:
        inside = datasets_in(path)
        if not storage.exists(path):
            raise InputError(f"{path}: no such folder: prepare it first (jobs/prepare.py --source FOLDER --out {path})")
        if not inside:
            raise InputError(
                f"{path}: no dataset.json in it or below: not prepared, or not finished; run jobs/prepare.py again"
            )
        for folder in unfinished_in(path):
            logger.warning("%s: not finished, and left out: run jobs/prepare.py again", folder)
        found.extend(inside)
    return list(dict.fromkeys(found))


def open_dataset(folder: str) -> PreparedData:
    """Open a finished data set; every tar must be there at its full size, with the index that was written with it.

    Raises:
        ShardError: a tar is missing or of another size than dataset.json says, or the index is of another run.
        InputError: dataset.json or the index cannot be read.

    """
    info = read_info(folder)
    for shard in info["shards"]:
        check_size(folder, shard)
    path = storage.join(folder, "index.parquet")
    content = storage.read_bytes(path)
    index = storage.read_table(path, content)
    if digest_bytes(content) != info["files"]["index.parquet"]:
        raise ShardError(
            f"{path}: not the index of {info['shards'][0]['name']}.tar and the others here: it is of another run, "
            "or damaged; run jobs/prepare.py again"
        )
    preprocess = PreprocessSettings.model_validate(info["preprocess"])
    return PreparedData(folder, info["dataset"], preprocess, index, info["digest"])


def read_info(folder: str) -> dict[str, Any]:
    """Read dataset.json, as it was written.

    Raises:
        InputError: it cannot be read.
        ShardError: it was changed or damaged.

    """
    path = storage.join(folder, "dataset.json")
    info = storage.read_json(path)
    if not storage.is_checked(info):
        raise ShardError(f"{path}: not as it was written: changed or damaged; run jobs/prepare.py again")
    return info


def check_size(folder: str, shard: dict[str, Any]) -> None:
    """Compare a tar's size with what dataset.json says of it.

    Raises:
        ShardError: it is missing or of another size: cut, or from another run.

    """
    path = storage.join(folder, f"{shard['name']}.tar")
    found = (storage.stat_if_there(path) or (0, 0))[0]
    if found != shard["bytes"]:
        raise ShardError(f"{path}: {found} bytes, expected {shard['bytes']}: missing or cut; run jobs/prepare.py again")


def _by_folder(plans: Sequence[ShardPlan]) -> dict[str, list[ShardPlan]]:
    folders = dict.fromkeys(plan.folder for plan in plans)
    return {folder: [plan for plan in plans if plan.folder == folder] for folder in folders}


def _read_part(plan: ShardPlan) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Read one tar's part as tables at once: as Python objects, those of a large archive would fill the memory."""
    path = storage.join(plan.folder, "parts", f"{plan.name}.json")
    part = storage.read_json(path)
    if not storage.is_checked(part):
        raise InputError(f"{path}: not as it was written: damaged; run jobs/prepare.py again")
    return part["shard"], table(part["records"], MANIFEST), table(part["index"], INDEX)


def _without_outliers(records: pa.Table) -> pa.Table:
    """Reject the masks whose area lies far out of the data set's own distribution."""
    usable = [status in USABLE for status in records.column("status").to_pylist()]
    areas = [area if use else None for area, use in zip(records.column("mask_area").to_pylist(), usable, strict=True)]
    outliers = manifest.area_outliers(areas)
    if not any(outliers):
        return records
    known = sorted(area for area in areas if area is not None)
    middle = known[len(known) // 2]
    statuses, reasons = records.column("status").to_pylist(), records.column("reason").to_pylist()
    for i, far in enumerate(outliers):
        if far:
            statuses[i] = "rejected"
            reasons[i] = (
                f"mask_area: the mask marks {areas[i]:.3f} of the picture, the median of this data set is "
                f"{middle:.3f}: look at it; mend it, or take the image out"
            )
    changed = records
    for name, values in (("status", statuses), ("reason", reasons)):
        changed = changed.set_column(MANIFEST.get_field_index(name), MANIFEST.field(name), pa.array(values))
    return changed


def _of_usable(index: pa.Table, records: pa.Table) -> pa.Table:
    """Keep the index rows whose record is usable."""
    rows = zip(records.column("image_id").to_pylist(), records.column("status").to_pylist(), strict=True)
    usable = {image_id for image_id, status in rows if status in USABLE}
    return index.filter(pa.array([image_id in usable for image_id in index.column("image_id").to_pylist()], pa.bool_()))


def _count_codes(statuses: Sequence[str], reasons: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count reason codes by status."""
    said = zip(statuses, reasons, strict=True)
    pairs = [(status, code) for status, reason in said for code in manifest.counted_codes(status, reason)]
    counts: dict[str, dict[str, int]] = {}
    for (status, code), count in sorted(Counter(pairs).items()):
        counts.setdefault(status, {})[code] = count
    return counts


def _delete_others(folder: str, names: set[str]) -> None:
    """Delete shards of an earlier archive that had more: a reader of `*.tar` would take them for samples."""
    ours = re.compile(re.escape(folder.rstrip("/")) + r"/(parts/)?(?P<name>[^/]+-\d{6,})(\.begun)?\.(tar|json)")
    for path in storage.list_files(folder, (".tar", ".json")):
        found = ours.fullmatch(path)
        left_over = found is not None and (found["name"] not in names or path.endswith(".begun.json"))
        if left_over and found is not None and found["name"].startswith(f"{storage.name_of(folder)}-"):
            storage.delete(path)


def _inside(record: Record, folder: str) -> bool:
    return any(uri.startswith(f"{folder}/") for uri in (record.image_uri, *record.mask_uris))
