"""Samples to the members of deterministic WebDataset tars and back, with an index of offsets; no Ray, no torch.

A prepared data set is a folder: `<dataset>-000000.tar` ..., `parts/<shard>.json` (what each shard was made of, its
digest, its members), `manifest.parquet` (every input and its status), `index.parquet` (every sample and where it lies)
and `dataset.json`, which is written last: a folder without it is not finished.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.data import images, manifest
from lungseg.data.preprocess import prepare_image, prepare_mask
from lungseg.errors import InputError, ShardError
from lungseg.schema import INDEX, MANIFEST, SCHEMA, Geometry, Record, Sample, check_schema, table

_MEMBERS = {"image": "image.png", "mask": "mask.png", "json": "json"}
_BLOCK = 512


@dataclass(frozen=True)
class ShardPlan:
    """The records that go into one tar of a data set, and how they are prepared."""

    folder: str
    name: str
    records: tuple[Record, ...]
    preprocess: PreprocessSettings


@dataclass(frozen=True)
class PreparedData:
    """A finished data set: its folder, its name, its settings, one index row a sample, the digest of all its tars."""

    folder: str
    name: str
    preprocess: PreprocessSettings
    index: pa.Table
    digest: str


def plan_shards(records: Sequence[Record], out: str, preprocess: PreprocessSettings, per_shard: int) -> list[ShardPlan]:
    """Cut each data set's records, in their order, into tars of `per_shard` inputs; the same plan on any machine."""
    plans = []
    for dataset in sorted({record.dataset for record in records}):
        own = [record for record in records if record.dataset == dataset]
        for number, start in enumerate(range(0, len(own), per_shard)):
            name = f"{dataset}-{number:06d}"
            plans.append(ShardPlan(storage.join(out, dataset), name, tuple(own[start : start + per_shard]), preprocess))
    return plans


def begin_datasets(plans: Sequence[ShardPlan]) -> None:
    """Take back the mark of a finished data set before its tars may change.

    Raises:
        InputError: a folder holds a data set that was made of another archive.

    """
    for folder in dict.fromkeys(plan.folder for plan in plans):
        path = storage.join(folder, "manifest.parquet")
        before = storage.read_table(path).column("image_uri").to_pylist() if storage.exists(path) else []
        now = {record.image_uri for plan in plans if plan.folder == folder for record in plan.records}
        if before and now.isdisjoint(before):
            raise InputError(
                f"{folder} holds a data set of another archive ({before[0]}): pass another --dataset or --out"
            )
        storage.delete(storage.join(folder, "dataset.json"))


def write_shard(plan: ShardPlan) -> dict[str, Any]:
    """Read, check and prepare the plan's records and write its tar; return its part, as `parts/<shard>.json` holds it.

    A tar that is there already, whole and made of the same files with the same settings, is left as it is.
    """
    path = storage.join(plan.folder, "parts", f"{plan.name}.json")
    made_of = _fingerprint(plan)
    done = _finished_part(path, plan, made_of)
    if done is not None:
        return done
    stream = io.BytesIO()
    records, rows = [], []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for record in plan.records:
            checked, sample = _to_sample(record, plan.preprocess)
            records.append(asdict(checked))
            if sample is not None:
                rows.append(_index_row(sample, plan.name, _add_members(tar, sample)))
    content = stream.getvalue()
    storage.write_bytes(storage.join(plan.folder, f"{plan.name}.tar"), content)
    part = {
        "made_of": made_of,
        "shard": {"name": plan.name, "bytes": len(content), "sha256": _sha256(content), "samples": len(rows)},
        "records": records,
        "index": rows,
    }
    storage.write_json(path, part)
    return part


def finish_dataset(plans: Sequence[ShardPlan], parts: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Join one data set's parts, in the plans' order, to its manifest, index and dataset.json; return its counts.

    Raises:
        InputError: not one input could be used.

    """
    folder, preprocess = plans[0].folder, plans[0].preprocess
    records = [record for part in parts for record in part["records"]]
    rows = [row for part in parts for row in part["index"]]
    counts = manifest.summarise(Record(**record) for record in records)
    storage.write_table(storage.join(folder, "manifest.parquet"), table(records, MANIFEST))
    if not rows:
        reasons = "; ".join(f"{count} {reason}" for reason, count in counts.items())
        raise InputError(
            f"{storage.name_of(folder)}: none of {len(records)} inputs can be used ({reasons}): see manifest.parquet"
        )
    storage.write_table(storage.join(folder, "index.parquet"), table(rows, INDEX))
    shards = [part["shard"] for part in parts]
    _delete_others(folder, {shard["name"] for shard in shards})
    info = {
        "dataset": storage.name_of(folder),
        "preprocess": preprocess.model_dump(),
        "counts": counts,
        "samples": len(rows),
        "with_mask": sum(1 for row in rows if row["mask_size"]),
        "digest": storage.digest([shard["sha256"] for shard in shards]),
        "shards": shards,
    }
    storage.write_json(storage.join(folder, "dataset.json"), info)
    return counts


def write_datasets(plans: Sequence[ShardPlan]) -> None:
    """Do the whole of a plan in this process; what the prepare pipeline does over a cluster."""
    begin_datasets(plans)
    parts = [write_shard(plan) for plan in plans]
    for folder in dict.fromkeys(plan.folder for plan in plans):
        own = [i for i, plan in enumerate(plans) if plan.folder == folder]
        finish_dataset([plans[i] for i in own], [parts[i] for i in own])


def datasets_in(path: str) -> list[str]:
    """List the finished data sets that a folder is or directly holds."""
    return [folder for folder in [path, *storage.list_folders(path)] if storage.exists(f"{folder}/dataset.json")]


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
        found.extend(inside)
    return list(dict.fromkeys(found))


def open_dataset(folder: str) -> PreparedData:
    """Open a finished data set; every tar must be there at its full size.

    Raises:
        ShardError: a tar is missing or of another size than dataset.json says: cut, or from another run.
        InputError: dataset.json or the index cannot be read.

    """
    info = storage.read_json(storage.join(folder, "dataset.json"))
    for shard in info["shards"]:
        path = storage.join(folder, f"{shard['name']}.tar")
        found = storage.stat(path)[0] if storage.exists(path) else 0
        if found != shard["bytes"]:
            raise ShardError(
                f"{path}: {found} bytes, expected {shard['bytes']}: missing or cut; run jobs/prepare.py again"
            )
    index = storage.read_table(storage.join(folder, "index.parquet"))
    if index.num_rows != info["samples"]:
        raise ShardError(
            f"{folder}: index of {index.num_rows} samples, dataset.json says {info['samples']}: prepare it again"
        )
    preprocess = PreprocessSettings.model_validate(info["preprocess"])
    return PreparedData(folder, info["dataset"], preprocess, index, info["digest"])


def to_sample(members: dict[str, bytes], where: str) -> Sample:
    """Decode one sample's members (`image`, `json`, and `mask` where there is one), read from the tar `where`.

    Raises:
        ShardError: the bytes are not those of a sample: the tar is damaged, or its index belongs to another.

    """
    try:
        meta = json.loads(members["json"])
        check_schema(meta["schema"], where)
        ids = {name: meta[name] for name in ("image_id", "dataset", "patient_id", "finding", "sha256")}
        geometry = Geometry(**meta["geometry"])
        image = images.decode(members["image"], where)
        mask = images.decode_mask(members["mask"], where) if members.get("mask") else None
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise ShardError(f"{where}: not a sample where the index says ({error}): run jobs/prepare.py again") from None
    return Sample(**ids, geometry=geometry, image=image.astype("uint8"), mask=mask)


def member_ranges(row: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Say where an index row's members lie: name to (offset, size), bytes."""
    return {name: (row[f"{name}_offset"], row[f"{name}_size"]) for name in _MEMBERS if row[f"{name}_size"]}


def _to_sample(record: Record, settings: PreprocessSettings) -> tuple[Record, Sample | None]:
    checked, image, native_mask = manifest.open_record(record)
    if image is None or checked.status != "ok":
        return checked, None
    square, geometry = prepare_image(image, settings)
    mask = None if native_mask is None else prepare_mask(native_mask, geometry)
    ids = (checked.image_id, checked.dataset, checked.patient_id, checked.finding, checked.sha256)
    return checked, Sample(*ids, geometry=geometry, image=square, mask=mask)


def _add_members(tar: tarfile.TarFile, sample: Sample) -> dict[str, tuple[int, int]]:
    """Append a sample's members and say where their bytes lie. Times and owners are 0, so that bytes repeat."""
    meta = {
        "schema": SCHEMA,
        "image_id": sample.image_id,
        "dataset": sample.dataset,
        "patient_id": sample.patient_id,
        "finding": sample.finding,
        "sha256": sample.sha256,
        "geometry": asdict(sample.geometry),
    }
    members = {"image": images.encode_image(sample.image), "json": json.dumps(meta).encode()}
    if sample.mask is not None:
        members["mask"] = images.encode_mask(sample.mask)
    ranges = {}
    for name, content in members.items():
        info = tarfile.TarInfo(f"{sample.image_id}.{_MEMBERS[name]}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        ranges[name] = (tar.offset - -(-len(content) // _BLOCK) * _BLOCK, len(content))
    return ranges


def _index_row(sample: Sample, shard: str, ranges: dict[str, tuple[int, int]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(sample, name) for name in ("image_id", "dataset", "patient_id", "finding", "sha256")
    }
    row["shard"] = shard
    for name in _MEMBERS:
        row[f"{name}_offset"], row[f"{name}_size"] = ranges.get(name, (0, 0))
    return row


def _delete_others(folder: str, names: set[str]) -> None:
    """Delete shards of an earlier archive that had more: a reader of `*.tar` would take them for samples."""
    for path in storage.list_files(folder, (".tar", ".json")):
        stem = storage.name_of(path).removesuffix(".tar").removesuffix(".json")
        is_shard = path.endswith(".tar") or storage.name_of(storage.parent_of(path)) == "parts"
        if is_shard and stem not in names:
            storage.delete(path)


def _fingerprint(plan: ShardPlan) -> str:
    """Digest of what a tar is made of: records, settings, and size and time of every file that is still there."""
    files = [uri for record in plan.records for uri in (record.image_uri, *record.mask_uris)]
    stats = [storage.stat(uri) if storage.exists(uri) else None for uri in files]
    records = [asdict(record) for record in plan.records]
    return storage.digest([SCHEMA, plan.name, plan.preprocess.model_dump(), records, stats])


def _finished_part(path: str, plan: ShardPlan, made_of: str) -> dict[str, Any] | None:
    """Return an earlier part if it is of the same make and its tar is whole; what failed to be read is tried again."""
    tar = storage.join(plan.folder, f"{plan.name}.tar")
    if not (storage.exists(path) and storage.exists(tar)):
        return None
    try:
        part = storage.read_json(path)
    except InputError:
        return None
    same = part["made_of"] == made_of and part["shard"]["sha256"] == _sha256(storage.read_bytes(tar))
    failed = any(record["status"] == "failed" for record in part["records"])
    return part if same and not failed else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
