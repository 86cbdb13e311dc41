"""Join finished shards into a data set: manifest, index, dataset.json."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest import reason_codes, record_checks
from lungseg.prepare.shard_plan import ShardPlan, save_plan
from lungseg.prepare.shard_writer import write_shard
from lungseg.schema import INDEX, MANIFEST, USABLE, Record, table
from lungseg.storage.files import digest_bytes


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


def _by_folder(plans: Sequence[ShardPlan]) -> dict[str, list[ShardPlan]]:
    folders = dict.fromkeys(plan.folder for plan in plans)
    return {folder: [plan for plan in plans if plan.folder == folder] for folder in folders}


def _read_part(plan: ShardPlan) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Read one tar's part as tables at once: as Python objects, those of a large archive would fill the memory."""
    path = storage.join(plan.folder, "parts", f"{plan.name}.json")
    part = storage.read_json(path)
    if not storage.has_valid_digest(part):
        raise InputError(f"{path}: not as it was written: damaged; run jobs/prepare.py again")
    return part["shard"], table(part["records"], MANIFEST), table(part["index"], INDEX)


def _without_outliers(records: pa.Table) -> pa.Table:
    """Reject the masks whose area lies far out of the data set's own distribution."""
    usable = [status in USABLE for status in records.column("status").to_pylist()]
    areas = [area if use else None for area, use in zip(records.column("mask_area").to_pylist(), usable, strict=True)]
    outliers = record_checks.area_outliers(areas)
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
    pairs = [(status, code) for status, reason in said for code in reason_codes.counted_codes(status, reason)]
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
