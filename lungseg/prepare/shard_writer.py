"""Samples to the members of deterministic WebDataset tars and back, found by an index of offsets."""

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
from lungseg.ingest.crash_isolation import APART_AFTER, MOST_DEATHS, begin, workers_died
from lungseg.prepare.sample_encoder import READ_THREADS, EncodedSample, Stopwatch, encode_samples
from lungseg.prepare.shard_plan import ShardPlan
from lungseg.schema import SCHEMA, Record
from lungseg.storage.files import digest_bytes

_BLOCK = 512


def write_shard(plan: ShardPlan, key: bytes | None = None) -> Row:
    """Read, check and prepare the plan's records and write its tar; say in a few numbers what became of them.

    `parts/<shard>.json` holds it in full. A tar that is there already, whole and made of the same files with the same
    settings, is left as it is. `key` turns DICOM patient ids into pseudonyms.
    """
    path = storage.join(plan.folder, "parts", f"{plan.name}.json")
    made_of = _fingerprint(plan, key)
    done = _finished_part(path, plan, made_of)
    if done is not None:
        return {**_numbers(done), "kept": True, "seconds": {}}
    deaths = _begin(plan)
    try:
        return _make(plan, key, made_of, apart=deaths >= APART_AFTER)
    except Exception:  # only a process that dies leaves the note behind
        storage.delete(_begun(plan))
        raise


def _make(plan: ShardPlan, key: bytes | None, made_of: str, apart: bool) -> Row:
    watch = Stopwatch()
    stream = io.BytesIO()
    records, rows = [], []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for packed in encode_samples(plan, key, watch, apart):
            records.append(packed.record.to_dict())
            if packed.members:
                rows.append(_index_row(packed.record, plan.name, _add_members(tar, packed)))
    with watch.time("write"):
        part = _write(plan, stream.getvalue(), made_of, records, rows)
        storage.delete(_begun(plan))
    return {**_numbers(part), "kept": False, "seconds": dict(watch.seconds)}


def _write(plan: ShardPlan, tar: bytes, made_of: str, records: list[Row], rows: list[Row]) -> Row:
    """Write a tar, and then its part, which says what became of the records and where the samples lie."""
    storage.write_bytes(storage.join(plan.folder, f"{plan.name}.tar"), tar)
    shard = {"name": plan.name, "bytes": len(tar), "sha256": digest_bytes(tar), "samples": len(rows)}
    part = {"made_of": made_of, "shard": shard, "records": records, "index": rows}
    path = storage.join(plan.folder, "parts", f"{plan.name}.json")
    storage.write_json(path, {**part, "checked": storage.digest(part)}, indent=None)
    return part


def _begin(plan: ShardPlan) -> int:
    """Note that this tar is being made; return how many earlier attempts ended with their process.

    Raises:
        InputError: too many did.

    """
    path = _begun(plan)
    deaths = begin(path)
    if deaths > MOST_DEATHS:
        storage.delete(path)
        raise InputError(workers_died(f"{plan.folder}/{plan.name}.tar", deaths))
    return deaths


def _begun(plan: ShardPlan) -> str:
    return storage.join(plan.folder, "parts", f"{plan.name}.begun.json")


def _add_members(tar: tarfile.TarFile, packed: EncodedSample) -> dict[str, tuple[int, int, int]]:
    """Append a sample's members: where their bytes lie, and their CRC-32. Times and owners are 0: bytes repeat."""
    places = {}
    for name, content in packed.members.items():
        info = tarfile.TarInfo(f"{packed.record.image_id}.{MEMBER_SUFFIXES[name]}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        places[name] = (tar.offset - -(-len(content) // _BLOCK) * _BLOCK, len(content), zlib.crc32(content))
    return places


def _index_row(record: Record, shard: str, places: dict[str, tuple[int, int, int]]) -> Row:
    row: Row = {name: getattr(record, name) for name in (*SAMPLE_ID_FIELDS, "phash")}
    row["shard"] = shard
    for name in MEMBER_SUFFIXES:
        row[f"{name}_offset"], row[f"{name}_size"], row[f"{name}_crc32"] = places.get(name, (0, 0, 0))
    return row


def _numbers(part: Row) -> Row:
    records = part["records"]
    counts = Counter(record["status"] for record in records)
    return {"inputs": len(records), "bytes": part["shard"]["bytes"], "counts": dict(counts)}


def _fingerprint(plan: ShardPlan, key: bytes | None) -> str:
    """Digest of what a tar is made of: records, settings, and size and time of every file that is still there."""
    files = [uri for record in plan.records for uri in (record.image_uri, *record.mask_uris) if uri]
    stats = _stats(files)
    records = [record.to_dict() for record in plan.records]
    who = pseudonym("", key) if key else ""
    return storage.digest([SCHEMA, plan.name, plan.preprocess.model_dump(), plan.odd_masks, who, records, stats])


def _stats(files: Sequence[str]) -> list[tuple[int, int] | None]:
    if not any("://" in uri for uri in files):
        return [storage.try_stat(uri) for uri in files]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(storage.try_stat, files))


def _finished_part(path: str, plan: ShardPlan, made_of: str) -> Row | None:
    """Return an earlier part if it is of the same make and its tar is whole; what failed to be read is tried again."""
    tar = storage.join(plan.folder, f"{plan.name}.tar")
    if not (storage.exists(path) and storage.exists(tar)):
        return None
    try:
        part = storage.read_json(path)
    except InputError:
        return None
    same = (
        storage.has_valid_digest(part)
        and part["made_of"] == made_of
        and part["shard"]["sha256"] == digest_bytes(storage.read_bytes(tar))
    )
    return part if same and not any(record["status"] == "failed" for record in part["records"]) else None
