"""Write one deterministic WebDataset tar and the rows of its records and samples."""

import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lungseg import storage
from lungseg.arrays import Row
from lungseg.dataset.shard_format import MEMBER_SUFFIXES, SAMPLE_ID_FIELDS
from lungseg.errors import InputError
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.ingest.crash_isolation import ISOLATE_AFTER, MAX_CRASHES, mark_started, too_many_crashes
from lungseg.prepare.sample_encoder import READ_THREADS, EncodedSample, Stopwatch, encode_samples
from lungseg.prepare.shard_part import part_path, read_part
from lungseg.prepare.shard_plan import ShardPlan
from lungseg.schema import SCHEMA, Record
from lungseg.storage.files import digest_bytes

_BLOCK = 512


def write_shard(plan: ShardPlan, key: bytes | None = None) -> Row:
    """Read, check and prepare the records of a plan and write its tar.

    An existing tar is kept if it is complete and was written from the same files with the same settings.
    `parts/<shard>.json` holds the rows of all records and samples. `key` turns DICOM patient ids into pseudonyms.

    Returns the number of inputs, bytes and inputs by status, whether the tar was kept, and the seconds by stage.
    """
    inputs_digest = _inputs_digest(plan, key)
    finished = _finished_part(plan, inputs_digest)
    if finished is not None:
        return {**_counts(finished), "kept": True, "seconds": {}}
    crashes = _mark_begun(plan)
    try:
        return _write_new(plan, key, inputs_digest, isolated=crashes >= ISOLATE_AFTER)
    except Exception:  # only a crash leaves the marker behind
        storage.delete(_marker_path(plan))
        raise


def _write_new(plan: ShardPlan, key: bytes | None, inputs_digest: str, isolated: bool) -> Row:
    watch = Stopwatch()
    stream = io.BytesIO()
    records, rows = [], []
    annotated: set[str] = set()
    overlaps: set[tuple[str, str]] = set()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for sample in encode_samples(plan, key, watch, isolated):
            records.append(sample.record.to_dict())
            if sample.members:
                rows.append(_index_row(sample.record, plan.name, _add_members(tar, sample)))
                annotated.update(sample.annotated)
                overlaps.update(sample.overlaps)
    with watch.time("write"):
        classes = {} if len(plan.preprocess.classes) == 1 else _class_fields(annotated, overlaps)
        part = _write_files(plan, stream.getvalue(), inputs_digest, (records, rows), classes)
        storage.delete(_marker_path(plan))
    return {**_counts(part), "kept": False, "seconds": dict(watch.seconds)}


def _class_fields(annotated: set[str], overlaps: set[tuple[str, str]]) -> Row:
    return {"annotated": sorted(annotated), "overlaps": sorted(map(list, overlaps))}


def _write_files(
    plan: ShardPlan, tar: bytes, inputs_digest: str, rows: tuple[list[Row], list[Row]], classes: Row
) -> Row:
    """Write a tar, and after it the part; return the part. rows: of the manifest and of the index."""
    storage.write_bytes(storage.join(plan.folder, f"{plan.name}.tar"), tar)
    shard = {"name": plan.name, "bytes": len(tar), "sha256": digest_bytes(tar), "samples": len(rows[1]), **classes}
    part = {"inputs_digest": inputs_digest, "shard": shard, "records": rows[0], "index": rows[1]}
    storage.write_json(part_path(plan.folder, plan.name), {**part, "checked": storage.digest(part)}, indent=None)
    return part


def _mark_begun(plan: ShardPlan) -> int:
    """Mark this tar as begun; return how many worker processes crashed while they wrote it.

    Raises:
        InputError: too many crashed.

    """
    path = _marker_path(plan)
    crashes = mark_started(path)
    if crashes > MAX_CRASHES:
        storage.delete(path)
        raise InputError(too_many_crashes(f"{plan.folder}/{plan.name}.tar", crashes))
    return crashes


def _marker_path(plan: ShardPlan) -> str:
    return storage.join(plan.folder, "parts", f"{plan.name}.begun.json")


def _add_members(tar: tarfile.TarFile, sample: EncodedSample) -> dict[str, tuple[int, int, int]]:
    """Append a sample's members; return the offset, size and CRC-32 of each.

    Times and owners are 0, so that the same inputs give the same bytes.
    """
    ranges = {}
    for name, content in sample.members.items():
        info = tarfile.TarInfo(f"{sample.record.image_id}.{MEMBER_SUFFIXES[name]}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        ranges[name] = (tar.offset - -(-len(content) // _BLOCK) * _BLOCK, len(content), zlib.crc32(content))
    return ranges


def _index_row(record: Record, shard: str, ranges: dict[str, tuple[int, int, int]]) -> Row:
    row: Row = {name: getattr(record, name) for name in (*SAMPLE_ID_FIELDS, "phash", "fold")}
    row["flags"] = list(record.flags)
    row["shard"] = shard
    for name in MEMBER_SUFFIXES:
        row[f"{name}_offset"], row[f"{name}_size"], row[f"{name}_crc32"] = ranges.get(name, (0, 0, 0))
    return row


def _counts(part: Row) -> Row:
    records = part["records"]
    counts = Counter(record["status"] for record in records)
    return {"inputs": len(records), "bytes": part["shard"]["bytes"], "counts": dict(counts)}


def _inputs_digest(plan: ShardPlan, key: bytes | None) -> str:
    """Return the digest of all that determines a tar: records, settings, key, and size and time of every file."""
    uris = [uri for record in plan.records for uri in (record.image_uri, *record.mask_uris) if uri]
    stats = _stats(uris)
    records = [record.to_dict() for record in plan.records]
    key_id = pseudonym("", key) if key else ""
    inputs = [SCHEMA, plan.name, plan.preprocess.model_dump(), plan.odd_masks, key_id, records, stats]
    # Earlier versions stored several classes as one map of numbers.
    return storage.digest(inputs if len(plan.preprocess.classes) == 1 else [*inputs, "one mask a class"])


def _stats(uris: Sequence[str]) -> list[tuple[int, int] | None]:
    if not any("://" in uri for uri in uris):
        return [storage.try_stat(uri) for uri in uris]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(storage.try_stat, uris))


def _finished_part(plan: ShardPlan, inputs_digest: str) -> Row | None:
    """Return the part of an earlier run if its inputs are the same, its tar is intact and no record of it failed."""
    path = part_path(plan.folder, plan.name)
    tar = storage.join(plan.folder, f"{plan.name}.tar")
    if not (storage.exists(path) and storage.exists(tar)):
        return None
    try:
        part = read_part(plan.folder, plan.name).content
    except InputError:
        return None
    same = part.get("inputs_digest") == inputs_digest and part["shard"]["sha256"] == digest_bytes(
        storage.read_bytes(tar)
    )
    return part if same and not any(record["status"] == "failed" for record in part["records"]) else None
