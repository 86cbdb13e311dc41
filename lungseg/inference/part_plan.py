"""The plan of an inference: which images lie in which part file, and whether a part that is there is of it."""

import json
import logging
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
from lungseg.schema import PREDICTIONS, table
from lungseg.storage.files import digest_bytes

logger = logging.getLogger(__name__)

# Entries of plan.json that no option has the name of, and those that only tell two things apart.
_LABELS = {
    "images": "images",
    "checkpoints": "--checkpoint",
    "model": "model",
    "patients": "--patient-key of digest",
}
_DIGESTS = {"digest", "model"}
_READERS = 8  # threads that look at parts; in a bucket, reading is waiting


@dataclass(frozen=True)
class PlannedPart:
    """A part of the plan: its items as JSON, and the digest of these and of all settings that show in a row."""

    number: int
    items: str
    images: int
    digest: str

    @classmethod
    def of(cls, number: int, items: Sequence[Item], settings: str) -> "PlannedPart":
        """Plan one part; settings: their digest."""
        text = json.dumps([item.to_dict() for item in items])
        return cls(number, text, len(items), storage.digest([settings, text]))


def claim(out: str, plan: dict[str, Any]) -> None:
    """Take an output folder for a plan, or find it taken for the same one.

    Raises:
        InputError: it holds predictions of another plan.

    """
    path = storage.join(out, "plan.json")
    if not storage.exists(path):
        strangers = part_files(out) if storage.exists(out) else []
        if strangers:
            raise InputError(f"{out} holds {storage.name_of(strangers[0])} but no plan.json: pass another --out")
        storage.write_json(path, plan)
        return
    found = read_inference_json(path, f"what its parts are of cannot be told: pass another --out, or delete {out}")
    if found.get("digest") != plan["digest"]:
        changed = _differences(found, plan) or "files in the archive that have changed since"
        raise InputError(f"{out}: predictions made with {changed}: repeat that or name another --out")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """List the settings that differ, each with both values, as `--part-size 32, now 64`."""
    old, new = flatten(before), flatten(now)
    changed = [name for name in new if name not in _DIGESTS and old.get(name) != new[name]]
    if old.get("model") != new["model"]:  # its runs, epochs and preprocessing follow from it
        changed = [name for name in changed if not name.startswith(("runs", "epochs", "preprocess"))]
        if "checkpoints" not in changed:
            changed.append("model")
    else:
        changed = [name for name in changed if name != "checkpoints"]  # the same model in another folder
    values = [(_LABELS.get(name, f"--{name.replace('_', '-')}"), old.get(name), new[name]) for name in changed]
    return "; ".join(f"{label} {format_value(was)}, now {format_value(value)}" for label, was, value in values)


def claim_device(out: str, device: str) -> None:
    """Note where the models compute, which decides what precision `auto` is, or find the same noted.

    Raises:
        InputError: parts that are there were computed elsewhere.

    """
    path = storage.join(out, "plan.json")
    plan = storage.read_json(path)
    before = plan.get("device", device)
    if before != device and part_files(out):
        raise InputError(
            f"{out} holds parts computed on {before} (--precision auto), this start would use {device}: pass --device "
            f"{'cpu' if before == 'cpu' else 'gpu'}, or another --out"
        )
    storage.write_json(path, {**plan, "device": device})


def write_part(path: str, rows: list[dict[str, Any]], digest: str) -> StatusCounts:
    """Write a part's file, whole or not at all; it says of which plan it is, and what became of its rows."""
    content = table(rows, PREDICTIONS)
    account = StatusCounts.from_rows(content)
    said = {"lungseg.part": digest, "lungseg.rows": str(len(rows)), "lungseg.account": account.to_json()}
    storage.write_table(path, content.replace_schema_metadata({**(content.schema.metadata or {}), **said}))
    return account


def find_finished(out: str, parts: Sequence[PlannedPart]) -> dict[int, StatusCounts]:
    """Find the parts that are there, whole and as planned; one with files that could not be read is made again.

    So is one that predictions.json of an earlier end tells otherwise: somebody changed it.

    Raises:
        InputError: a part is of another plan, or there are parts that this plan does not have.

    """
    there = set(part_files(out))
    strangers = there - {part_path(out, part.number) for part in parts}
    if strangers:
        raise InputError(f"{min(strangers)} is of another plan: pass another --out, or delete it")
    left = [part for part in parts if part_path(out, part.number) in there]
    told = recorded_digests(out)

    def look(part: PlannedPart) -> StatusCounts | None:
        path = part_path(out, part.number)
        return _look(path, part, told.get(storage.name_of(path)))

    with ThreadPoolExecutor(_READERS) as pool:
        accounts = pool.map(look, left)
        return {part.number: account for part, account in zip(left, accounts, strict=True) if account is not None}


def discard_outdated(out: str, parts: Sequence[PlannedPart]) -> None:
    """Take back what tells that an inference has ended, before these parts are made: what tells of them is not true.

    One that was found changed is deleted first: else a job that is killed now would find it untold of, and keep it.
    """
    told = recorded_digests(out)
    for part in parts:
        path = part_path(out, part.number)
        digest = told.get(storage.name_of(path))
        if digest and storage.exists(path) and digest_bytes(storage.read_bytes(path)) != digest:
            storage.delete(path)
    storage.delete(storage.join(out, "predictions.json"))


def _look(path: str, part: PlannedPart, told: str | None) -> StatusCounts | None:
    content = storage.read_bytes(path)
    try:
        rows = read_part(path, content)
    except InputError as error:
        logger.warning("made again: %s", error)
        return None
    said = rows.schema.metadata
    if said.get(b"lungseg.part", b"").decode() != part.digest:
        raise InputError(f"{path} is of another plan: pass another --out, or delete it")
    account = StatusCounts.from_rows(rows)
    whole = rows.num_rows == part.images == int(said[b"lungseg.rows"])
    if told is not None and told != digest_bytes(content):
        logger.warning("made again: %s is not the file that predictions.json tells of", path)
        return None
    again = account.statuses["failed"] or any(code == "unreadable" for _, code in account.codes)
    return account if whole and not again else None
