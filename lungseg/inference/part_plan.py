"""Plan of an inference: the images of each part, and which finished parts can be kept."""

import json
import logging
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lungseg import storage
from lungseg.config.options import flatten
from lungseg.config.shared import format_value
from lungseg.errors import InputError
from lungseg.inference.items import Item
from lungseg.predictions.parts import (
    StatusCounts,
    part_files,
    part_path,
    read_inference_json,
    read_part,
    recorded_digests,
)
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import table
from lungseg.storage.files import digest_bytes

logger = logging.getLogger(__name__)

# Entries of plan.json that are not named after their option, and entries that are only digests.
_LABELS = {
    "images": "images",
    "plan_format": "the format of the plan",
    "checkpoints": "--checkpoint",
    "model": "model",
    "patients": "--patient-key of digest",
    "custom_network": "source of --model.custom",
}
_DIGESTS = {"digest", "model", "reference"}
_LISTED = ("images", "reference", "digest")  # known when all images are listed
ALL = sys.maxsize  # parts
_READERS = 8  # threads that read parts; reads from a bucket mostly wait


@dataclass(frozen=True)
class PlannedPart:
    """A part of the plan: items: of `pack_items`; digest: of the items and of all settings that affect a row."""

    number: int
    items: bytes
    images: int
    digest: str

    @classmethod
    def of(cls, number: int, items: Sequence[Item], settings: str) -> "PlannedPart":
        """Create a part; settings: digest of the settings."""
        text = json.dumps([item.to_dict() for item in items])
        return cls(number, zlib.compress(text.encode(), 1), len(items), storage.digest([settings, text]))


def unpack_items(packed: bytes) -> list[Item]:
    """Restore the items of a PlannedPart."""
    return [Item.from_dict(item) for item in json.loads(zlib.decompress(packed))]


def claim_settings(out: str, plan: dict[str, Any]) -> bool:
    """Write plan.json without images and digest, or check that its plan.json has the same settings.

    Returns whether plan.json already has the digest of all parts: an earlier run listed the whole archive.

    Raises:
        InputError: the folder holds predictions of another plan.

    """
    path = storage.join(out, "plan.json")
    if not storage.exists(path):
        foreign = part_files(out)
        if foreign:
            raise InputError(f"{out} holds {storage.name_of(foreign[0])} but no plan.json: pass another --out")
        storage.write_json(path, plan)
        return False
    earlier = _read_plan(out)
    if changed := _differences(earlier, plan):
        raise _other_settings(out, changed)
    return "digest" in earlier


def claim(out: str, plan: dict[str, Any]) -> None:
    """Write plan.json to the output folder, or check that its plan.json has the same plan, with images and digest.

    Raises:
        InputError: the folder holds predictions of another plan.

    """
    is_known = claim_settings(out, {name: value for name, value in plan.items() if name not in _LISTED})
    earlier = _read_plan(out)
    if not is_known:
        storage.write_json(storage.join(out, "plan.json"), {**earlier, **plan})
        return
    if earlier["digest"] == plan["digest"]:
        return
    if changed := _differences(earlier, plan):
        raise _other_settings(out, changed)
    raise InputError(f"{out} holds predictions of files that have changed since then: pass another --out")


def _read_plan(out: str) -> dict[str, Any]:
    path = storage.join(out, "plan.json")
    return read_inference_json(path, f"the origin of the parts is unknown: pass another --out, or delete {out}")


def _other_settings(out: str, changed: str) -> InputError:
    return InputError(
        f"{out} holds predictions made with other inputs or settings ({changed}): repeat those, or pass another --out"
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """List the settings that differ, each with both values, such as `--part-size 32, now 64`."""
    old, new = flatten(before), flatten(now)
    changed = [name for name in new if name not in _DIGESTS and old.get(name) != new[name]]
    if old.get("model") != new["model"]:  # its name, runs, epochs and preprocessing follow from it
        changed = [name for name in changed if not name.startswith(("model_name", "runs", "epochs", "preprocess"))]
        if "checkpoints" not in changed:
            changed.append("model")
    else:
        changed = [name for name in changed if name != "checkpoints"]  # the same model in another folder
    values = [(_LABELS.get(name, f"--{name.replace('_', '-')}"), old.get(name), new[name]) for name in changed]
    return "; ".join(f"{label} {format_value(was)}, now {format_value(value)}" for label, was, value in values)


def claim_device(out: str, device: str) -> None:
    """Record the device in plan.json: it decides the precision of `--precision auto`.

    Raises:
        InputError: finished parts were computed on the other kind of device.

    """
    path = storage.join(out, "plan.json")
    plan = storage.read_json(path)
    before = plan.get("device", device)
    if before != device and part_files(out):
        raise InputError(
            f"{out} holds parts computed on {before} (--precision auto), this run would use {device}: pass --device "
            f"{'cpu' if before == 'cpu' else 'gpu'}, or another --out"
        )
    storage.write_json(path, {**plan, "device": device})


def write_part(path: str, rows: list[dict[str, Any]], digest: str) -> StatusCounts:
    """Write a part atomically, with its digest and number of rows as metadata; return the counts of its rows."""
    content = table(rows, PREDICTIONS)
    metadata = {"lungseg.part": digest, "lungseg.rows": str(len(rows))}
    storage.write_table(path, content.replace_schema_metadata({**(content.schema.metadata or {}), **metadata}))
    return StatusCounts.from_rows(content)


def require_own_parts(out: str, count: int) -> None:
    """Check that the folder has no part whose number is not in a plan of `count` parts.

    Raises:
        InputError: it has.

    """
    foreign = set(part_files(out)) - {part_path(out, number) for number in range(count)}
    if foreign:
        raise InputError(_foreign_part(min(foreign)))


def find_finished(out: str, parts: Sequence[PlannedPart]) -> dict[int, StatusCounts]:
    """Find the finished parts to keep, with the counts of their rows, by number.

    Not kept: parts that are damaged, incomplete, changed since predictions.json was written, or that have files which
    could not be read (a retry may succeed).

    Raises:
        InputError: a part belongs to another plan.

    """
    present, digests = set(part_files(out)), recorded_digests(out)
    candidates = [part for part in parts if part_path(out, part.number) in present]

    def check(part: PlannedPart) -> StatusCounts | None:
        path = part_path(out, part.number)
        return _check_part(path, part, digests.get(storage.name_of(path)))

    with ThreadPoolExecutor(_READERS) as pool:
        results = pool.map(check, candidates)
        return {part.number: counts for part, counts in zip(candidates, results, strict=True) if counts is not None}


def discard_outdated(out: str, numbers: Sequence[int]) -> None:
    """Delete predictions.json and .csv before these parts are predicted, and those of them that were changed since.

    Changed parts go first. Otherwise, if the job is killed in between, the next start would have no digest to compare
    them with and would keep them.
    """
    digests = recorded_digests(out)
    for number in numbers if digests else ():
        path = part_path(out, number)
        digest = digests.get(storage.name_of(path))
        if digest and storage.exists(path) and digest_bytes(storage.read_bytes(path)) != digest:
            storage.delete(path)
    storage.delete(storage.join(out, "predictions.csv"))
    storage.delete(storage.join(out, "predictions.json"))


def _check_part(path: str, part: PlannedPart, recorded_digest: str | None) -> StatusCounts | None:
    """Return the counts of a part that can be kept, else None."""
    content = storage.read_bytes(path)
    try:
        rows = read_part(path, content)
    except InputError as error:
        logger.warning("predicting this part again: %s", error)
        return None
    metadata = rows.schema.metadata
    if metadata.get(b"lungseg.part", b"") != part.digest.encode():
        raise InputError(_foreign_part(path))
    if recorded_digest is not None and recorded_digest != digest_bytes(content):
        logger.warning("predicting this part again: %s does not match its digest in predictions.json", path)
        return None
    counts = StatusCounts.from_rows(rows)
    is_complete = rows.num_rows == part.images and metadata.get(b"lungseg.rows") == str(part.images).encode()
    has_unread_files = counts.statuses["failed"] or any(code == "unreadable" for _, code in counts.codes)
    return counts if is_complete and not has_unread_files else None


def _foreign_part(path: str) -> str:
    return f"{path} belongs to another plan: pass another --out, or delete this file"
