"""Join finished shards into a dataset: manifest, index, dataset.json."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lungseg import storage
from lungseg.dataset import catalog
from lungseg.errors import InputError, with_name
from lungseg.ingest import record_checks
from lungseg.ingest.reason_codes import Note, counted_codes
from lungseg.plurals import counted
from lungseg.prepare.shard_part import read_part
from lungseg.prepare.shard_plan import ShardPlan, save_plan
from lungseg.prepare.shard_writer import write_shard
from lungseg.schema import MANIFEST, USABLE, Record, table
from lungseg.storage.files import digest_bytes


def begin_datasets(plans: Sequence[ShardPlan]) -> None:
    """Delete each dataset.json, the mark of a finished dataset, before tars change, and write the plans.

    Raises:
        InputError: files of the archive, or a dataset.json of another program, are in the folder of a dataset.

    """
    plans_by_folder = _by_folder(plans)
    for folder, members in plans_by_folder.items():
        inside = next(
            (record.image_uri for plan in members for record in plan.records if _inside(record, folder)), None
        )
        if inside:
            raise InputError(f"{folder} holds files of the archive ({inside}): pass another --out or --dataset")
        if catalog.has_foreign_json(folder):
            raise InputError(f"{folder} has a dataset.json of another program: pass another --out or --dataset")
    for folder, members in plans_by_folder.items():
        storage.delete(storage.join(folder, "dataset.json"))
        save_plan(members)


def finish_dataset(plans: Sequence[ShardPlan]) -> dict[str, Any]:
    """Join the parts of one dataset, in the order of its plans; return the content of dataset.json.

    Raises:
        InputError: no input is usable, or a part cannot be read.

    """
    folder = plans[0].folder
    parts = [_read_part(plan) for plan in plans]
    shards = [shard for shard, _, _ in parts]
    unmatched = table([record.to_dict() for record in plans[0].unmatched_masks], MANIFEST)
    records = _without_outliers(pa.concat_tables([*(records for _, records, _ in parts), unmatched]))
    index = _usable_rows(pa.concat_tables([index for _, _, index in parts]), records)
    del parts  # GiB for an archive of millions
    statuses = records.column("status").to_pylist()
    codes = _count_codes(statuses, records.column("codes").to_pylist())
    manifest_bytes = storage.table_bytes(records)
    storage.write_bytes(storage.join(folder, "manifest.parquet"), manifest_bytes)
    if not index.num_rows:
        raise InputError(
            f"{storage.name_of(folder)}: none of {counted(len(statuses), 'input')} is usable ({_describe(codes)}); "
            f"first: {with_name(storage.name_of(records['image_uri'][0].as_py()), records['message'][0].as_py())}; "
            f"{storage.join(folder, 'manifest.parquet')} has all messages"
        )
    index_bytes = storage.table_bytes(index)
    storage.write_bytes(storage.join(folder, "index.parquet"), index_bytes)
    _delete_old_shards(folder, {shard["name"] for shard in shards})
    storage.delete_unfinished(folder)
    info = {
        "dataset": storage.name_of(folder),
        "preprocess": plans[0].preprocess.model_dump(),
        "inputs": len(statuses),
        "counts": dict(sorted(Counter(statuses).items())),
        "codes": codes,
        "flags": _count_flags(records),
        "samples": index.num_rows,
        "with_mask": sum(1 for size in index.column("mask_size").to_pylist() if size),
        **_class_fields(plans[0].preprocess.classes, shards),
        "digest": storage.digest([shard["sha256"] for shard in shards] + [digest_bytes(index_bytes)]),
        "files": {"index.parquet": digest_bytes(index_bytes), "manifest.parquet": digest_bytes(manifest_bytes)},
        "shards": shards,
    }
    storage.write_json(storage.join(folder, "dataset.json"), {**info, "checked": storage.digest(info)})
    return info


def _class_fields(classes: Sequence[str], shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return which classes a dataset annotates, and which of them overlap."""
    if len(classes) == 1:
        return {"annotated": list(classes), "overlaps": []}
    annotated = {name for shard in shards for name in shard["annotated"]}
    overlaps = {tuple(pair) for shard in shards for pair in shard["overlaps"]}
    return {"annotated": [name for name in classes if name in annotated], "overlaps": sorted(map(list, overlaps))}


def _count_flags(records: pa.Table) -> dict[str, int]:
    """Count the flags of the inputs that are kept: nobody looks at those of a rejected one."""
    kept = records.filter(pc.is_in(records.column("status"), pa.array(USABLE)))
    return dict(sorted(Counter(kept.column("flags").combine_chunks().flatten().to_pylist()).items()))


def write_datasets(plans: Sequence[ShardPlan]) -> None:
    """Write and finish all datasets of a plan in this process, without Ray."""
    begin_datasets(plans)
    for plan in plans:
        write_shard(plan)
    for members in _by_folder(plans).values():
        finish_dataset(members)


def _by_folder(plans: Sequence[ShardPlan]) -> dict[str, list[ShardPlan]]:
    folders = dict.fromkeys(plan.folder for plan in plans)
    return {folder: [plan for plan in plans if plan.folder == folder] for folder in folders}


def _read_part(plan: ShardPlan) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Return shard, manifest rows and index rows of one part, as tables: Python objects would fill the memory."""
    part = read_part(plan.folder, plan.name)
    return part.content["shard"], part.records, part.index


def _without_outliers(records: pa.Table) -> pa.Table:
    """Reject records whose mask area is an outlier in the dataset."""
    usable = [status in USABLE for status in records.column("status").to_pylist()]
    areas = [area if use else None for area, use in zip(records.column("mask_area").to_pylist(), usable, strict=True)]
    outliers = record_checks.area_outliers(areas)
    if not any(outliers):
        return records
    known = sorted(area for area in areas if area is not None)
    median = known[len(known) // 2]
    columns = {name: records.column(name).to_pylist() for name in ("status", "codes", "message")}
    for i, is_outlier in enumerate(outliers):
        if is_outlier:
            note = Note(
                "mask_area",
                f"the mask covers {areas[i]:.3f} of the image, the median of this dataset is {median:.3f}: "
                "check the mask; correct it, or remove the image",
            )
            columns["status"][i], columns["codes"][i], columns["message"][i] = "rejected", [note.code], note.message
    for name, values in columns.items():
        field = MANIFEST.field(name)
        records = records.set_column(MANIFEST.get_field_index(name), field, pa.array(values, field.type))
    return records


def _usable_rows(index: pa.Table, records: pa.Table) -> pa.Table:
    """Keep the index rows whose record is usable."""
    rows = zip(records.column("image_id").to_pylist(), records.column("status").to_pylist(), strict=True)
    usable = {image_id for image_id, status in rows if status in USABLE}
    return index.filter(pa.array([image_id in usable for image_id in index.column("image_id").to_pylist()], pa.bool_()))


def _count_codes(statuses: Sequence[str], codes: Sequence[Sequence[str]]) -> dict[str, dict[str, int]]:
    """Count reason codes by status: result[status][code]."""
    rows = zip(statuses, codes, strict=True)
    pairs = [(status, code) for status, row_codes in rows for code in counted_codes(status, row_codes)]
    counts: dict[str, dict[str, int]] = {}
    for (status, code), count in sorted(Counter(pairs).items()):
        counts.setdefault(status, {})[code] = count
    return counts


def _describe(codes: dict[str, dict[str, int]]) -> str:
    """Format counts of reason codes, as in `rejected: 2 blank, 1 depth; failed: 1 unreadable`."""
    counts = {status: ", ".join(f"{count} {code}" for code, count in of.items()) for status, of in codes.items()}
    return "; ".join(f"{status}: {text}" for status, text in counts.items())


def _delete_old_shards(folder: str, names: set[str]) -> None:
    """Delete shards of an earlier plan: a reader of `*.tar` would read them too."""
    shard_file = re.compile(re.escape(folder.rstrip("/")) + r"/(parts/)?(?P<name>[^/]+-\d{6,})(\.begun)?\.(tar|json)")
    for path in storage.list_files(folder, (".tar", ".json")):
        match = shard_file.fullmatch(path)
        if match is None or not match["name"].startswith(f"{storage.name_of(folder)}-"):
            continue
        if match["name"] not in names or path.endswith(".begun.json"):
            storage.delete(path)


def _inside(record: Record, folder: str) -> bool:
    return any(uri.startswith(f"{folder}/") for uri in (record.image_uri, *record.mask_uris))
